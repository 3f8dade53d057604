//! Clients: one request, one connection, one datagram, and what came of it.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::namespace::Namespace;

/// What takes longer has failed. A lost packet costs a second or two at most (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(5);

/// A backend's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The backend's name.
    pub backend: String,
    /// The client's address as the backend saw it.
    pub client: SocketAddr,
}

/// Why a request failed.
#[derive(Debug)]
pub struct Failure {
    /// What was under way.
    pub step: &'static str,
    /// What happened.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.why)
    }
}

/// Marks an error with the step that it happened in.
fn at<E: ToString>(step: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure { step, why: error.to_string() }
}

/// An HTTP connection.
#[derive(Debug)]
pub struct Connection {
    input: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from this thread's namespace.
    ///
    /// # Errors
    ///
    /// The connection does not open in time.
    pub fn open(target: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&target, PATIENCE).map_err(at("connect"))?;
        Self::over(stream)
    }

    /// Connects from a port of the caller's choice, which other sockets may use towards other targets.
    ///
    /// # Errors
    ///
    /// The port is not free, or the connection does not open in time.
    pub fn open_from(source: SocketAddr, target: SocketAddr) -> Result<Self, Failure> {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket(family, SocketType::STREAM, None).map_err(at("socket"))?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(at("share the port"))?;
        // Bounds the connect, too (socket(7)).
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))
            .map_err(at("set a timeout"))?;
        rustix::net::bind(&socket, &source).map_err(at("bind"))?;
        rustix::net::connect(&socket, &target).map_err(at("connect"))?;
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Result<Self, Failure> {
        stream.set_read_timeout(Some(PATIENCE)).map_err(at("set a timeout"))?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(at("set a timeout"))?;
        stream.set_nodelay(true).map_err(at("set no delay"))?;
        Ok(Self { input: BufReader::new(stream) })
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        self.input.get_ref()
    }

    /// Asks for the backend's name, and leaves the connection open.
    ///
    /// # Errors
    ///
    /// The connection fails, or the answer is not a backend's.
    pub fn ask(&mut self) -> Result<Reply, Failure> {
        let (status, body) = self.request("GET", "/", "", "")?;
        if status != 200 {
            return Err(Failure { step: "answer", why: format!("status {status}: {body}") });
        }
        parse(&body)
    }

    /// One request; returns status and body.
    ///
    /// # Errors
    ///
    /// The connection fails, or the answer is not HTTP with a Content-Length.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Result<(u16, String), Failure> {
        let host = self.stream().peer_addr().map_err(at("peer"))?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        self.input.get_mut().write_all(request.as_bytes()).map_err(at("send"))?;
        let mut line = String::new();
        self.input.read_line(&mut line).map_err(at("read"))?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| at("read")(format!("no status line: {line:?}")))?;
        let mut length = 0;
        while line.trim_end() != "" {
            line.clear();
            self.input.read_line(&mut line).map_err(at("read the head"))?;
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(at::<std::num::ParseIntError>("length"))?;
            }
        }
        let mut body = vec![0; length];
        self.input.read_exact(&mut body).map_err(at("read the body"))?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Sees the connection end as it should: closed by the server, with nothing more to say.
    fn expect_end(&mut self) -> Result<(), Failure> {
        match self.input.read(&mut [0; 64]).map_err(at("end"))? {
            0 => Ok(()),
            more => Err(Failure { step: "end", why: format!("{more} bytes too many") }),
        }
    }
}

/// One request over a connection of its own, from this thread's namespace.
///
/// # Errors
///
/// Anything is not as it should be.
pub fn ask(target: SocketAddr) -> Result<Reply, Failure> {
    let mut connection = Connection::open(target)?;
    let (status, body) = connection.request("GET", "/", "Connection: close\r\n", "")?;
    if status != 200 {
        return Err(Failure { step: "answer", why: format!("status {status}: {body}") });
    }
    connection.expect_end()?;
    parse(&body)
}

/// `count` requests one after another from `namespace`, each over its own connection; the names of the
/// backends that answered.
///
/// # Panics
///
/// A request fails.
#[must_use]
pub fn turns(namespace: &Namespace, target: SocketAddr, count: usize) -> Vec<String> {
    namespace.run(|| {
        let one = |_| match ask(target) {
            Ok(reply) => reply.backend,
            Err(failure) => panic!("{target}: {failure}"),
        };
        (0..count).map(one).collect()
    })
}

/// A UDP client.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// Binds a port in this thread's namespace and talks to `target` alone.
    ///
    /// # Errors
    ///
    /// The machine refuses.
    pub fn open(target: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr =
            if target.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        // Connected, it takes datagrams from `target` alone.
        socket.connect(target)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Sends a datagram and waits for the answer, which must carry the same payload.
    ///
    /// # Errors
    ///
    /// No answer, or a wrong one.
    pub fn ask(&self, payload: &str) -> Result<Reply, Failure> {
        self.socket.send(payload.as_bytes()).map_err(at("send"))?;
        let mut buffer = vec![0; 65536];
        let length = self.socket.recv(&mut buffer).map_err(at("receive"))?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let fields: Vec<&str> = text.splitn(3, ' ').collect();
        match fields.as_slice() {
            [backend, client, echo] if *echo == payload => parse(&format!("{backend} {client}")),
            _ => Err(at("answer")(format!("{text:?}"))),
        }
    }
}

fn parse(text: &str) -> Result<Reply, Failure> {
    let wrong = || at("answer")(format!("{text:?}"));
    let (backend, client) = text.trim_end().split_once(' ').ok_or_else(wrong)?;
    let client = client.parse().map_err(|_| wrong())?;
    Ok(Reply { backend: backend.to_owned(), client })
}
