//! Backends: small servers in a namespace that answer with their name and with whom they see.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    eventually::{SOON, eventually},
    namespace::Namespace,
    transfer::{self, MAGIC},
};

/// A UDP server looks this often whether it is to stop.
const UDP_PATIENCE: Duration = Duration::from_millis(50);

/// An HTTP server. Every GET is answered with `NAME ADDRESS:PORT` of the client, as the server sees it.
/// A connection that opens with [`MAGIC`] is a transfer, see [`transfer`]. Dropped, it stops.
#[derive(Debug)]
pub struct HttpBackend {
    namespace: Namespace,
    address: SocketAddr,
    name: String,
    running: Option<Running>,
}

/// Connections of a server by a number of their own, to cut them when it stops.
type Connections = Arc<Mutex<HashMap<u64, TcpStream>>>;

#[derive(Debug)]
struct Running {
    listener: TcpListener,
    connections: Connections,
    acceptor: JoinHandle<()>,
}

impl HttpBackend {
    /// Starts one that says it is `name`.
    ///
    /// # Panics
    ///
    /// The address cannot be listened on.
    #[must_use]
    pub fn start(namespace: &Namespace, address: SocketAddr, name: &str) -> Self {
        let mut backend = Self::stopped(namespace, address, name);
        backend.resume();
        backend
    }

    /// One that is not started yet.
    #[must_use]
    pub fn stopped(namespace: &Namespace, address: SocketAddr, name: &str) -> Self {
        Self { namespace: namespace.clone(), address, name: name.to_owned(), running: None }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it again.
    ///
    /// # Panics
    ///
    /// The address cannot be listened on.
    pub fn resume(&mut self) {
        let address = self.address;
        let listener = self
            .namespace
            .run(|| eventually("the backend's port is free", SOON, || TcpListener::bind(address)));
        let connections = Connections::default();
        let accepting = listener.try_clone().expect("share a listener");
        let (shared, name) = (Arc::clone(&connections), self.name.clone());
        let acceptor = thread::spawn(move || accept(&accepting, &shared, &name));
        self.running = Some(Running { listener, connections, acceptor });
    }

    /// Stops listening and cuts every connection.
    pub fn stop(&mut self) {
        let Some(Running { listener, connections, acceptor }) = self.running.take() else { return };
        // Ends a blocked accept, which dropping the descriptor does not.
        let _already_stopped = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        let _panicked = acceptor.join();
        for stream in lock(&connections).values() {
            let _closed_by_the_client = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for HttpBackend {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(connections: &Connections) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, connections: &Connections, name: &str) {
    for number in 0.. {
        let Ok((stream, peer)) = listener.accept() else { return };
        if let Ok(shared) = stream.try_clone() {
            lock(connections).insert(number, shared);
        }
        let (connections, name) = (Arc::clone(connections), name.to_owned());
        thread::spawn(move || {
            let _client_went_away = serve(&stream, peer, &name);
            lock(&connections).remove(&number);
        });
    }
}

/// Answers the requests of one connection.
fn serve(stream: &TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    if input.fill_buf()?.first() == Some(&MAGIC) {
        return transfer::serve(&mut input, stream);
    }
    let mut line = String::new();
    let mut close = false;
    loop {
        line.clear();
        if input.by_ref().take(8192).read_line(&mut line)? == 0 {
            return Ok(());
        }
        close |= line.trim_end().eq_ignore_ascii_case("connection: close");
        if line.trim_end().is_empty() {
            let body = format!("{name} {peer}\n");
            let length = body.len();
            let connection = if close { "close" } else { "keep-alive" };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
            );
            (&mut &*stream).write_all(format!("{head}{body}").as_bytes())?;
            if close {
                return Ok(());
            }
        }
    }
}

/// A UDP server: answers every datagram with `NAME ADDRESS:PORT PAYLOAD`. Dropped, it stops.
#[derive(Debug)]
pub struct UdpBackend {
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl UdpBackend {
    /// Starts one that says it is `name`.
    ///
    /// # Panics
    ///
    /// The address cannot be bound.
    #[must_use]
    pub fn start(namespace: &Namespace, address: SocketAddr, name: &str) -> Self {
        let socket = namespace.run(|| UdpSocket::bind(address)).expect("bind a UDP backend");
        socket.set_read_timeout(Some(UDP_PATIENCE)).expect("set a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, name) = (Arc::clone(&stop), name.to_owned());
        let server = thread::spawn(move || {
            let mut buffer = [0; 65536];
            while !stopping.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                let payload = String::from_utf8_lossy(&buffer[..length]);
                let _client_went_away =
                    socket.send_to(format!("{name} {peer} {payload}").as_bytes(), peer);
            }
        });
        Self { stop, server: Some(server) }
    }
}

impl Drop for UdpBackend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _panicked = server.join();
        }
    }
}
