//! Route netlink messages: bytes in, what they say out. No I/O.
//!
//! Only what the agent acts on is read; any bytes are read without harm, since lengths are checked at each
//! step (include/uapi/linux/netlink.h, rtnetlink.h, if_link.h, neighbour.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::interfaces::Device;

/// Message types (`NLMSG_*`, `RTM_*`).
mod kind {
    pub(super) const ERROR: u16 = 2;
    pub(super) const DONE: u16 = 3;
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const DEL_LINK: u16 = 17;
    pub(super) const GET_LINK: u16 = 18;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const DEL_ADDRESS: u16 = 21;
    pub(super) const NEW_ROUTE: u16 = 24;
    pub(super) const DEL_ROUTE: u16 = 25;
    pub(super) const NEW_NEIGHBOUR: u16 = 28;
    pub(super) const DEL_NEIGHBOUR: u16 = 29;
    pub(super) const GET_NEIGHBOUR: u16 = 30;
    pub(super) const NEW_RULE: u16 = 32;
    pub(super) const DEL_RULE: u16 = 33;
    pub(super) const NEW_NEXT_HOP: u16 = 104;
    pub(super) const DEL_NEXT_HOP: u16 = 105;
}

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// `struct ndmsg`.
const NEIGHBOUR_HEADER: usize = 12;
/// Bits of an attribute's type that are flags (NLA_TYPE_MASK).
const ATTRIBUTE_FLAGS: u16 = 0xc000;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_RUNNING: u32 = 1 << 6;
const IFF_LOWER_UP: u32 = 1 << 16;

/// States in which the kernel sends to a neighbour's address (NUD_VALID, include/net/neighbour.h).
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;

/// A link, as far as it matters for where packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) device: Device,
    /// Up, running, with carrier.
    pub(super) flags: u32,
    pub(super) mtu: u32,
    /// Index of the bridge, bond or VRF that it is in, or 0.
    pub(super) master: u32,
    /// Its own MAC address.
    pub(super) address: Vec<u8>,
}

/// A neighbour on a link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Neighbour {
    pub(super) link: u32,
    pub(super) address: IpAddr,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// There is such a link.
    Link(Link),
    /// There is no link with this index any more.
    LinkGone(u32),
    /// A neighbour has this MAC address, or none that can be used.
    Neighbour(Neighbour, Option<Vec<u8>>),
    /// Routes, rules or addresses of this host have changed.
    Routes,
    /// The end of a dump.
    Done,
    /// The kernel refuses a request, with this code.
    Refused(i32),
}

/// A request for all links.
pub(super) fn get_links() -> Vec<u8> {
    request(kind::GET_LINK, LINK_HEADER)
}

/// A request for all neighbours.
pub(super) fn get_neighbours() -> Vec<u8> {
    request(kind::GET_NEIGHBOUR, NEIGHBOUR_HEADER)
}

/// A dump request with a body of zeros: everything of every address family.
fn request(kind: u16, body: usize) -> Vec<u8> {
    const REQUEST_AND_DUMP: u16 = 0x301;
    let length = HEADER + body;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_AND_DUMP.to_ne_bytes());
    bytes.resize(length, 0);
    bytes
}

/// What a datagram says, in order.
pub(super) fn read(datagram: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut rest = datagram;
    while let Some(length) = u32_at(rest, 0).map(|length| length as usize)
        && let Some(kind) = u16_at(rest, 4)
        && length >= HEADER
        && let Some(body) = rest.get(HEADER..length)
    {
        events.extend(event(kind, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    events
}

fn event(kind: u16, body: &[u8]) -> Option<Event> {
    match kind {
        // The bridge's own messages about its ports are of its own family, and are not about the device:
        // RTM_DELLINK there means that a port has left the bridge.
        kind::NEW_LINK if body.first() == Some(&AF_UNSPEC) => link(body).map(Event::Link),
        kind::DEL_LINK if body.first() == Some(&AF_UNSPEC) => u32_at(body, 4).map(Event::LinkGone),
        kind::NEW_NEIGHBOUR => neighbour(body).map(|(n, address)| Event::Neighbour(n, address)),
        kind::DEL_NEIGHBOUR => neighbour(body).map(|(n, _)| Event::Neighbour(n, None)),
        kind::NEW_ADDRESS..=kind::DEL_ADDRESS
        | kind::NEW_ROUTE..=kind::DEL_ROUTE
        | kind::NEW_RULE..=kind::DEL_RULE
        | kind::NEW_NEXT_HOP..=kind::DEL_NEXT_HOP => Some(Event::Routes),
        kind::DONE => Some(Event::Done),
        kind::ERROR => Some(Event::Refused(u32_at(body, 0)?.cast_signed().wrapping_neg())),
        _ => None,
    }
}

fn link(body: &[u8]) -> Option<Link> {
    const ADDRESS: u16 = 1;
    const NAME: u16 = 3;
    const MTU: u16 = 4;
    const MASTER: u16 = 10;
    const INFO: u16 = 18;
    const INFO_KIND: u16 = 1;
    let attributes = body.get(LINK_HEADER..)?;
    let flags = u32_at(body, 8)?;
    let mut link = Link {
        device: Device {
            index: u32_at(body, 4)?,
            name: String::new(),
            loopback: flags & IFF_LOOPBACK != 0,
            kind: None,
        },
        flags: flags & (IFF_UP | IFF_RUNNING | IFF_LOWER_UP),
        mtu: 0,
        master: 0,
        address: Vec::new(),
    };
    for (kind, value) in Attributes(attributes) {
        match kind {
            ADDRESS => link.address = value.to_owned(),
            NAME => link.device.name = text(value),
            MTU => link.mtu = u32_at(value, 0)?,
            MASTER => link.master = u32_at(value, 0)?,
            INFO => {
                let kind = Attributes(value).find(|(kind, _)| *kind == INFO_KIND);
                link.device.kind = kind.map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    (!link.device.name.is_empty()).then_some(link)
}

fn neighbour(body: &[u8]) -> Option<(Neighbour, Option<Vec<u8>>)> {
    const DESTINATION: u16 = 1;
    const LINK_ADDRESS: u16 = 2;
    let family = *body.first()?;
    let link = u32_at(body, 4)?;
    let state = u16_at(body, 8)?;
    let (mut destination, mut link_address) = (None, None);
    for (kind, value) in Attributes(body.get(NEIGHBOUR_HEADER..)?) {
        match (kind, family) {
            (DESTINATION, AF_INET) => {
                destination = <[u8; 4]>::try_from(value).ok().map(|a| Ipv4Addr::from(a).into());
            }
            (DESTINATION, AF_INET6) => {
                destination = <[u8; 16]>::try_from(value).ok().map(|a| Ipv6Addr::from(a).into());
            }
            (LINK_ADDRESS, _) => link_address = Some(value.to_owned()),
            _ => {}
        }
    }
    // Entries of bridges' forwarding tables are neighbours too, of a family of their own.
    let neighbour = Neighbour { link, address: destination? };
    Some((neighbour, link_address.filter(|_| state & NUD_VALID != 0)))
}

/// Attributes, type and value, as far as they hold together.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !ATTRIBUTE_FLAGS;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// A text that ends with a zero.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
pub(super) mod tests;
