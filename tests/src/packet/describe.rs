//! Bytes → a line to read, for the messages of failed cases. It never fails: what it does not
//! understand it shows as bytes.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// One line about a frame.
#[must_use]
pub fn describe(bytes: &[u8]) -> String {
    let mut text = format!("{} bytes", bytes.len());
    let Some(ethernet) = bytes.get(..14) else { return text };
    write!(text, ", {} -> {}", mac(&ethernet[6..12]), mac(&ethernet[..6])).expect("a string");
    let rest = &bytes[14..];
    let tuple = match ethernet[12..] {
        [0x08, 0x00] => ipv4(rest),
        [0x86, 0xdd] => ipv6(rest),
        _ => None,
    };
    match tuple {
        Some(tuple) => text.push_str(&tuple),
        None => write!(text, ", type {:02x}{:02x}", ethernet[12], ethernet[13]).expect("a string"),
    }
    text
}

/// Both frames, and where they differ.
#[must_use]
pub fn difference(expected: &[u8], found: &[u8]) -> String {
    let mut text = format!(
        "  expected {}\n           {}\n  found    {}\n           {}\n  differs at",
        describe(expected),
        hex(expected),
        describe(found),
        hex(found)
    );
    for place in 0..expected.len().max(found.len()) {
        if expected.get(place) != found.get(place) {
            write!(text, " {place}").expect("a string");
        }
    }
    text
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(120).map(|byte| format!("{byte:02x}")).collect()
}

fn ipv4(bytes: &[u8]) -> Option<String> {
    let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
    let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
    let transport = bytes.get(usize::from(bytes[0] & 15) * 4..)?;
    let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
    let tuple = |ports: (u16, u16)| {
        (SocketAddr::from((source, ports.0)), SocketAddr::from((destination, ports.1)))
    };
    line(bytes[9], bytes[8], transport, tuple)
}

fn ipv6(bytes: &[u8]) -> Option<String> {
    let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
    let destination: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
    let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
    let tuple = |ports: (u16, u16)| {
        (SocketAddr::from((source, ports.0)), SocketAddr::from((destination, ports.1)))
    };
    line(bytes[6], bytes[7], &bytes[40..], tuple)
}

fn line(
    protocol: u8,
    ttl: u8,
    transport: &[u8],
    tuple: impl Fn((u16, u16)) -> (SocketAddr, SocketAddr),
) -> Option<String> {
    let ports = transport.get(..4)?;
    let (source, destination) =
        tuple((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])));
    let mut text = format!(", {source} -> {destination} protocol {protocol} ttl {ttl}");
    if protocol == 6
        && let Some(header) = transport.get(..20)
    {
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        write!(text, " flags {:02x} seq {} ack {}", header[13], number(4), number(8)).ok()?;
    }
    Some(text)
}
