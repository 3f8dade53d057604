//! One probe.

use std::{io, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream},
    time,
};

use crate::model::{health::Answer, spec::ProbeKind};

/// Longest response head that a probe reads, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Longest body that a probe reads, in bytes.
const MAX_BODY: usize = 64 << 10;
/// Longest time that a probe reads a body.
const MAX_BODY_TIME: Duration = Duration::from_millis(100);

/// Asks `address` once, and waits for the answer at most `timeout`.
///
/// The connection is closed by a reset: it leaves nothing in TIME_WAIT on either side, which thousands of
/// probes a second would fill with.
pub async fn probe_once(kind: &ProbeKind, address: SocketAddr, timeout: Duration) -> Answer {
    let asked = async {
        let stream = connect(address).await.map_err(|error| connect_error(&error))?;
        match kind {
            ProbeKind::Tcp => Ok(None),
            ProbeKind::Http { path, host, statuses } => {
                let host = host.clone().unwrap_or_else(|| address.to_string());
                let response = get(stream, path, &host, timeout).await?;
                let status = response.status().as_u16();
                if statuses.iter().any(|&(low, high)| (low..=high).contains(&status)) {
                    Ok(Some(response))
                } else {
                    Err(format!("status {status}, wanted {}", Ranges(statuses)))
                }
            }
        }
    };
    match time::timeout(timeout, asked).await {
        Ok(Ok(None)) => Answer::Good,
        Ok(Ok(Some(response))) => {
            drain(response).await;
            Answer::Good
        }
        Ok(Err(why)) => Answer::Bad(why),
        Err(_) => Answer::Bad(format!("no answer within {timeout:?}")),
    }
}

/// Reads what follows a good status, up to bounds: a backend that is reset while it writes would log a
/// failed request for each probe. What comes does not matter.
async fn drain(response: Response<Incoming>) {
    let body = Limited::new(response.into_body(), MAX_BODY).collect();
    let _whatever_it_was = time::timeout(MAX_BODY_TIME, body).await;
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    socket.connect(address).await
}

fn connect_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::HostUnreachable => "host unreachable".into(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
        _ => error.to_string(),
    }
}

/// The head of the answer to a GET; its body is still to come.
async fn get(
    stream: TcpStream,
    path: &str,
    host: &str,
    timeout: Duration,
) -> Result<Response<Incoming>, String> {
    let not_http = |error: hyper::Error| format!("not HTTP: {error}");
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(not_http)?;
    // It ends with the response; the bound is for a backend that keeps it open.
    tokio::spawn(time::timeout(timeout + MAX_BODY_TIME, connection));
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "graylb-probe")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    sender.send_request(request).await.map_err(not_http)
}

/// Prints `200-299, 304`.
struct Ranges<'a>(&'a [(u16, u16)]);

impl std::fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, (low, high)) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            if low == high { write!(f, "{low}")? } else { write!(f, "{low}-{high}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(300);

    fn http() -> ProbeKind {
        ProbeKind::Http { path: "/".into(), host: None, statuses: vec![(200, 299), (304, 304)] }
    }

    /// A server that answers each connection with `reply`, and then keeps it open or not.
    async fn server(reply: &'static [u8], keep: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _read = stream.read(&mut request).await;
                    let _written = stream.write_all(reply).await;
                    if keep {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        address
    }

    async fn ask(reply: &'static [u8], keep: bool) -> Answer {
        probe_once(&http(), server(reply, keep).await, TIMEOUT).await
    }

    fn bad(answer: &Answer, part: &str) {
        assert!(matches!(answer, Answer::Bad(why) if why.contains(part)), "{answer:?}");
    }

    #[tokio::test]
    async fn good_answers() {
        assert_eq!(
            ask(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false).await,
            Answer::Good
        );
        assert_eq!(ask(b"HTTP/1.0 304 X\r\n\r\n", true).await, Answer::Good);
        // The body may be slow, or end too early: the status has been said.
        let unfinished = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";
        assert_eq!(ask(unfinished, true).await, Answer::Good);
        assert_eq!(ask(unfinished, false).await, Answer::Good);
        let address = server(b"", true).await;
        assert_eq!(probe_once(&ProbeKind::Tcp, address, TIMEOUT).await, Answer::Good);
    }

    #[tokio::test]
    async fn bad_answers_say_why() {
        bad(&ask(b"HTTP/1.1 503 X\r\n\r\n", false).await, "status 503, wanted 200-299, 304");
        bad(&ask(b"SSH-2.0-OpenSSH\r\n", false).await, "not HTTP");
        bad(&ask(b"", true).await, "no answer within 300ms");
        bad(&ask(b"HTTP/1.1 200 O", true).await, "no answer within 300ms");
        assert!(matches!(ask(b"", false).await, Answer::Bad(_)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let closed = listener.local_addr().expect("address");
        drop(listener);
        bad(&probe_once(&ProbeKind::Tcp, closed, TIMEOUT).await, "connection refused");
    }

    #[tokio::test]
    async fn an_endless_head_is_cut_off() {
        let head: Vec<u8> = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'a'; 2 * MAX_HEAD]].concat();
        assert!(matches!(ask(Box::leak(head.into()), true).await, Answer::Bad(_)));
    }
}
