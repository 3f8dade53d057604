//! One backend of the demo: a small HTTP/1.1 server that says who it is.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;

/// Connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 256;
/// Longest head of a request, in bytes.
const MAX_HEAD: u64 = 16 << 10;
/// A silent connection ends then.
const IDLE: Duration = Duration::from_secs(30);

/// Serves until the process ends.
pub(crate) fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .with_context(|| format!("cannot listen on 127.0.0.1:{port}"))?;
    let body: Arc<str> = format!("{} server\n", port % 100).into();
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let (Ok(stream), body, open) = (stream, Arc::clone(&body), Arc::clone(&open)) else {
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        thread::spawn(move || {
            // A client that goes away is no fault of this server's.
            let _gone = talk(&stream, &body);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

/// Answers requests of one connection, one after the other.
fn talk(stream: &TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        let mut limited = reader.by_ref().take(MAX_HEAD);
        while limited.read_until(b'\n', &mut head)? > 0 && !ends_head(&head) {}
        if head.is_empty() {
            return Ok(());
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let Some(request) = Request::parse(&head) else {
            return (&*stream).write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        };
        io::copy(&mut reader.by_ref().take(request.body_length), &mut io::sink())?;
        let connection = if request.keep { "keep-alive" } else { "close" };
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        if !request.only_head {
            answer.push_str(body);
        }
        (&*stream).write_all(answer.as_bytes())?;
        if !request.keep {
            return Ok(());
        }
    }
}

fn ends_head(head: &[u8]) -> bool {
    head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n")
}

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    only_head: bool,
    keep: bool,
    body_length: u64,
}

impl Request {
    /// Reads a complete head. A chunked body is beyond this server.
    fn parse(head: &str) -> Option<Self> {
        if !ends_head(head.as_bytes()) {
            return None;
        }
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (method, _path, version) = (words.next()?, words.next()?, words.next()?);
        let mut request = Self {
            only_head: method == "HEAD",
            keep: match version {
                "HTTP/1.1" => true,
                "HTTP/1.0" => false,
                _ => return None,
            },
            body_length: 0,
        };
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "connection" if value.eq_ignore_ascii_case("close") => request.keep = false,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => request.keep = true,
                "content-length" => request.body_length = value.parse().ok()?,
                "transfer-encoding" => return None,
                _ => {}
            }
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::Request;

    #[test]
    fn requests_are_read() {
        let cases = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Some((false, true, 0))),
            ("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", Some((true, false, 0))),
            ("GET / HTTP/1.0\r\n\r\n", Some((false, false, 0))),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", Some((false, true, 0))),
            ("POST / HTTP/1.1\r\ncontent-length: 12\r\n\r\n", Some((false, true, 12))),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a\r\n", None),
            ("nonsense\r\n\r\n", None),
        ];
        for (head, expected) in cases {
            let found = Request::parse(head).map(|r| (r.only_head, r.keep, r.body_length));
            assert_eq!(found, expected, "{head:?}");
        }
    }
}
