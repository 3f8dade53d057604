//! A datagram and its answer.

use std::{io, net::SocketAddr};

use tokio::net::UdpSocket;

use super::{Asked, connect, excerpt};
use crate::model::probe::UdpProbe;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Asks once. An answer that is not the right one is bad at once; silence is until the timeout.
pub(super) async fn ask(probe: &UdpProbe, address: SocketAddr) -> Asked {
    let answer = exchange(&probe.send, address).await.map_err(|error| connect::why(&error))?;
    let expect = &probe.expect;
    if expect.is_empty() || answer.windows(expect.len()).any(|part| part == expect) {
        return Ok(());
    }
    Err(format!("answered {:?}, which lacks {:?}", excerpt(&answer), excerpt(expect)))
}

async fn exchange(send: &[u8], address: SocketAddr) -> io::Result<Vec<u8>> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    // Connected, so that nobody else's datagrams arrive, and a port that nobody listens on is an error.
    socket.connect(address).await?;
    socket.send(send).await?;
    let mut answer = vec![0; MAX_ANSWER];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}
