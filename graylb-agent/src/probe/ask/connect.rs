//! Connections to backends, plain.

use std::{io, net::SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

/// A connection that ends with a reset when it is dropped.
pub(super) async fn tcp(address: SocketAddr) -> Result<TcpStream, String> {
    open(address).await.map_err(|error| why(&error))
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    socket.connect(address).await
}

/// In a few words, without the number of the error.
pub(super) fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::HostUnreachable => "host unreachable".into(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        _ => error.to_string(),
    }
}
