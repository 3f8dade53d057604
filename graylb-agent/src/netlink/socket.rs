//! Netlink sockets: one that hears of changes, and one for each question.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::SocketAddrNetlink,
        recv, send, socket_with,
        sockopt::{self, Timeout},
    },
};

use super::{
    NetlinkError,
    message::{self, Event},
    table::{Effect, Table},
};

/// Longest datagram; dumps come in parts of at most 32 KiB (netlink_dump, net/netlink/af_netlink.c).
const BUFFER: usize = 1 << 16;
/// Room for datagrams that wait, so that a burst is not lost.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Longest wait for the kernel's answer to a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Multicast groups (RTNLGRP_*, include/uapi/linux/rtnetlink.h): LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE,
/// IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, NEXTHOP.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// What a read brought.
pub(super) enum Heard {
    /// Events.
    Events(Vec<Event>),
    /// There is nothing more at the moment.
    Nothing,
    /// The kernel had to drop messages: anything may have changed.
    Lost,
}

/// Opens the socket that hears of changes from now on.
pub(super) fn listen() -> Result<OwnedFd, NetlinkError> {
    let tried = NetlinkError::because("cannot follow the kernel's links and routes");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).map_err(&tried)?;
    // A small buffer only makes losses more likely, and they are noticed.
    if let Err(error) = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER) {
        tracing::debug!("netlink receive buffer stays small: {error}");
    }
    let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    bind(&socket, &SocketAddrNetlink::new(0, groups)).map_err(&tried)?;
    Ok(socket)
}

/// Reads one datagram of changes.
pub(super) fn hear(socket: &OwnedFd, buffer: &mut Vec<u8>) -> Result<Heard, Errno> {
    buffer.resize(BUFFER, 0);
    match recv(socket, buffer.as_mut_slice(), RecvFlags::TRUNC) {
        Ok((_, length)) if length > BUFFER => Ok(Heard::Lost),
        Ok((_, length)) => Ok(Heard::Events(message::read(&buffer[..length]))),
        Err(Errno::AGAIN) => Ok(Heard::Nothing),
        Err(Errno::INTR) => Ok(Heard::Events(Vec::new())),
        Err(Errno::NOBUFS) => Ok(Heard::Lost),
        Err(error) => Err(error),
    }
}

/// Asks the kernel for all links and neighbours. Waits for the answer.
pub(super) fn dump() -> Result<Table, NetlinkError> {
    let mut table = Table::default();
    for request in [message::get_links(), message::get_neighbours()] {
        for event in ask(&request)? {
            // The table is new: everything is a change.
            let _effect: Effect = table.take(event);
        }
    }
    Ok(table)
}

fn ask(request: &[u8]) -> Result<Vec<Event>, NetlinkError> {
    let tried = NetlinkError::because("cannot ask the kernel for its links and neighbours");
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .map_err(&tried)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(&tried)?;
    send(&socket, request, SendFlags::empty()).map_err(&tried)?;
    let mut events = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((_, length)) => length,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(tried(error)),
        };
        for event in message::read(&buffer[..length]) {
            match event {
                Event::Done => return Ok(events),
                Event::Refused(code) => return Err(tried(Errno::from_raw_os_error(code))),
                event => events.push(event),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_loopback() {
        let table = dump().expect("dump");
        let devices = table.devices();
        let lo = devices.iter().find(|device| device.name == "lo").expect("lo");
        assert!(lo.loopback && lo.index == 1 && lo.kind.is_none(), "{lo:?}");
    }
}
