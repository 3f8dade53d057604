//! Messages of the kernel, whole and damaged.

use proptest::prelude::*;

use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE_HEADER + value.len();
    let mut bytes = (length as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(&body);
    bytes
}

fn link_message(kind: u16, family: u8) -> Vec<u8> {
    let mut header = [0; LINK_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&7_u32.to_ne_bytes());
    header[8..12].copy_from_slice(&(IFF_UP | 0x1000).to_ne_bytes());
    let info = attribute(1, b"veth\0");
    message(
        kind,
        &[
            &header,
            &attribute(3, b"web0\0"),
            &attribute(4, &1500_u32.to_ne_bytes()),
            &attribute(1, &[2, 0, 0, 0, 0, 1]),
            &attribute(18 | 0x8000, &info),
            &attribute(99, &[1; 5]),
        ],
    )
}

fn neighbour_message(kind: u16, family: u8, state: u16) -> Vec<u8> {
    let mut header = [0; NEIGHBOUR_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&7_u32.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    message(kind, &[&header, &attribute(1, &[10, 0, 0, 9]), &attribute(2, &[2; 6])])
}

#[test]
fn links_are_read() {
    let link = Link {
        device: Device {
            index: 7,
            name: "web0".into(),
            loopback: false,
            kind: Some("veth".into()),
        },
        flags: IFF_UP,
        mtu: 1500,
        master: 0,
        address: vec![2, 0, 0, 0, 0, 1],
    };
    let datagram = [link_message(16, 0), link_message(17, 0)].concat();
    assert_eq!(read(&datagram), [Event::Link(link), Event::LinkGone(7)]);
    // A port that joins or leaves a bridge.
    assert_eq!(read(&link_message(16, 7)), []);
    assert_eq!(read(&link_message(17, 7)), []);
}

#[test]
fn neighbours_are_read() {
    let neighbour = Neighbour { link: 7, address: [10, 0, 0, 9].into() };
    let mac = Some(vec![2; 6]);
    for (kind, state, expected) in [
        (28, 0x02, mac.clone()), // REACHABLE
        (28, 0x04, mac.clone()), // STALE
        (28, 0x80, mac.clone()), // PERMANENT
        (28, 0x01, None),        // INCOMPLETE
        (28, 0x20, None),        // FAILED
        (29, 0x04, None),
    ] {
        let events = read(&neighbour_message(kind, AF_INET, state));
        assert_eq!(events, [Event::Neighbour(neighbour.clone(), expected)], "{kind} {state}");
    }
    // A bridge's forwarding table.
    assert_eq!(read(&neighbour_message(28, 7, 0x02)), []);
    // A length that is none of its family's.
    assert_eq!(read(&neighbour_message(28, AF_INET6, 0x02)), []);
}

#[test]
fn the_rest_is_read() {
    for kind in [20, 21, 24, 25, 32, 33, 104, 105] {
        assert_eq!(read(&message(kind, &[&[0; 12]])), [Event::Routes]);
    }
    assert_eq!(read(&message(3, &[&[0; 4]])), [Event::Done]);
    assert_eq!(read(&message(2, &[&(-1_i32).to_ne_bytes()])), [Event::Refused(1)]);
    assert_eq!(read(&get_links()), []);
}

proptest! {
    #[test]
    fn damaged_bytes_do_no_harm(
        at in 0_usize..200,
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        cut in 0_usize..200,
    ) {
        let mut datagram = [link_message(16, 0), neighbour_message(28, AF_INET, 2)].concat();
        for (place, byte) in datagram.iter_mut().skip(at).zip(bytes) {
            *place = byte;
        }
        datagram.truncate(datagram.len().saturating_sub(cut));
        prop_assert!(read(&datagram).len() <= datagram.len() / HEADER);
    }
}
