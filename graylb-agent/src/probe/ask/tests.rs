//! Ways to ask that need no more than a socket or a program; those with TLS are tested with the agent.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};

use super::*;
use crate::model::probe::{ExecProbe, HttpProbe, HttpVersion, UdpProbe};

const TIMEOUT: Duration = Duration::from_millis(300);
/// Longer than any response head that is read.
const ENDLESS: usize = 64 << 10;

fn http() -> HttpProbe {
    HttpProbe {
        method: "GET".into(),
        path: "/".into(),
        host: None,
        headers: vec![("X-Probe".into(), "yes".into())],
        statuses: vec![(200, 299), (304, 304)],
        body: None,
        version: HttpVersion::Http1,
        tls: None,
    }
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

async fn probe(kind: ProbeKind, address: SocketAddr) -> Answer {
    let spec = ProbeSpec {
        kind,
        port: None,
        elsewhere: BTreeMap::new(),
        interval: TIMEOUT,
        doubt_interval: TIMEOUT,
        timeout: TIMEOUT,
        rise: 1,
        fall: 1,
    };
    Prober::new(Target { pool: "blue".into(), address }, spec).ask().await
}

async fn ask(reply: &'static [u8], keep: bool) -> Answer {
    probe(ProbeKind::Http(http()), server(reply, keep).await).await
}

async fn ask_body(pattern: &str, reply: &'static [u8], keep: bool) -> Answer {
    let kind = ProbeKind::Http(HttpProbe { body: Some(pattern.into()), ..http() });
    probe(kind, server(reply, keep).await).await
}

async fn run(command: &[&str]) -> Answer {
    let command = command.iter().map(ToString::to_string).collect();
    let address = "192.0.2.1:80".parse().expect("address");
    probe(ProbeKind::Exec(ExecProbe { command }), address).await
}

fn bad(answer: &Answer, part: &str) {
    assert!(matches!(answer, Answer::Bad(why) if why.contains(part)), "{answer:?}, not {part:?}");
}

#[tokio::test]
async fn good_answers() {
    assert_eq!(ask(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false).await, Answer::Good);
    assert_eq!(ask(b"HTTP/1.0 304 X\r\n\r\n", true).await, Answer::Good);
    // The body may be slow, or end too early: the status has been said.
    let unfinished = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";
    assert_eq!(ask(unfinished, true).await, Answer::Good);
    assert_eq!(ask(unfinished, false).await, Answer::Good);
    assert_eq!(probe(ProbeKind::Tcp, server(b"", true).await).await, Answer::Good);
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
    bad(&probe(ProbeKind::Tcp, closed).await, "connection refused");
}

#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let head: Vec<u8> = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'a'; ENDLESS]].concat();
    assert!(matches!(ask(Box::leak(head.into()), true).await, Answer::Bad(_)));
}

#[tokio::test]
async fn bodies_are_matched() {
    let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 22\r\n\r\n{\"ready\":true,\"n\":\"12\"}";
    assert_eq!(ask_body(r#""ready": ?true"#, reply, true).await, Answer::Good);
    assert_eq!(ask_body("(?-u:\\d)2", reply, false).await, Answer::Good);
    bad(&ask_body("^ok$", reply, true).await, "does not match \"^ok$\": \"{\\\"ready\\\":true");
    // Here it matters when it is slow or breaks off.
    let unfinished = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";
    bad(&ask_body("ok", unfinished, true).await, "no answer within");
    bad(&ask_body("ok", unfinished, false).await, "broke off");
}

#[tokio::test]
async fn the_request_is_as_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    let kind = ProbeKind::Http(HttpProbe {
        method: "HEAD".into(),
        path: "/healthz?deep=1".into(),
        host: Some("shop.example".into()),
        headers: vec![("user-agent".into(), "mine".into()), ("X-Key".into(), "k".into())],
        ..http()
    });
    let asking = tokio::spawn(probe(kind, address));
    let (mut stream, _) = listener.accept().await.expect("accept");
    let mut request = vec![0; 1024];
    let length = stream.read(&mut request).await.expect("a request");
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await.expect("answer");
    let mut lines: Vec<_> =
        std::str::from_utf8(&request[..length]).expect("text").lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "",
            "HEAD /healthz?deep=1 HTTP/1.1",
            "connection: close",
            "host: shop.example",
            "user-agent: mine",
            "x-key: k"
        ]
    );
    assert_eq!(asking.await.expect("the probe"), Answer::Good);
}

#[tokio::test]
async fn datagrams() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut datagram = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut datagram).await {
            if &datagram[..length] != b"silence" {
                let _sent = socket.send_to(&[b"re: ", &datagram[..length]].concat(), peer).await;
            }
        }
    });
    let ask = async |send: &[u8], expect: &[u8]| {
        let kind = UdpProbe { send: send.into(), expect: expect.into() };
        probe(ProbeKind::Udp(kind), address).await
    };
    assert_eq!(ask(b"ping", b"").await, Answer::Good);
    assert_eq!(ask(&[0, 255], &[b' ', 0, 255]).await, Answer::Good);
    bad(&ask(b"ping", b"pong").await, "answered \"re: ping\", which lacks \"pong\"");
    bad(&ask(b"silence", b"").await, "no answer within");
    let unused = UdpSocket::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
    let kind = UdpProbe { send: b"x".into(), expect: Vec::new() };
    bad(&probe(ProbeKind::Udp(kind), unused).await, "connection refused");
}

#[tokio::test]
async fn commands() {
    assert_eq!(run(&["/bin/true"]).await, Answer::Good);
    bad(&run(&["/bin/false"]).await, "/bin/false: exit status: 1");
    bad(&run(&["/nonexistent"]).await, "cannot run /nonexistent: No such file");
    let told = r#"echo "$GRAYLB_POOL $GRAYLB_BACKEND $GRAYLB_ADDRESS $GRAYLB_PORT $HOME"; exit 3"#;
    bad(&run(&["/bin/sh", "-c", told]).await, "exit status: 3: blue 192.0.2.1:80 192.0.2.1 80");
    bad(&run(&["/bin/sh", "-c", "echo out; echo bad >&2; exit 1"]).await, "1: bad");
    // Much output blocks nobody.
    assert_eq!(run(&["/bin/sh", "-c", "head -c 1000000 /dev/zero"]).await, Answer::Good);
}

#[tokio::test]
async fn nothing_is_left_of_a_command_that_takes_too_long() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("pids");
    let script = format!("sleep 1000 & echo $! $$ > {}; wait", file.display());
    bad(&run(&["/bin/sh", "-c", &script]).await, "no answer within 300ms");
    let pids = std::fs::read_to_string(&file).expect("the command has run");
    for pid in pids.split_whitespace() {
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z'))
        };
        let gone = async {
            while state() == Some(false) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(Duration::from_secs(10), gone).await.expect("the process is killed");
    }
}

#[tokio::test]
async fn another_address_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let closed = listener.local_addr().expect("address");
    drop(listener);
    let target = Target { pool: "blue".into(), address: server(b"", true).await };
    let spec = ProbeSpec {
        kind: ProbeKind::Tcp,
        port: Some(closed.port()),
        elsewhere: BTreeMap::new(),
        interval: TIMEOUT,
        doubt_interval: TIMEOUT,
        timeout: TIMEOUT,
        rise: 1,
        fall: 1,
    };
    let answer = Prober::new(target, spec).ask().await;
    assert_eq!(answer, Answer::Bad(format!("connection refused (asked {closed})")));
}

#[test]
fn what_is_quoted_is_short_and_clean() {
    assert_eq!(excerpt(b"\r\n  two\twords \nmore"), "two\u{fffd}words");
    assert_eq!(excerpt(&[b'a'; 200]).chars().count(), 121);
    assert_eq!(excerpt(&[0xff, b'x']), "\u{fffd}x");
}
