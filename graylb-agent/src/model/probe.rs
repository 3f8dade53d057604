//! How a pool's backends are asked whether they are well: what is asked, where, and how often. Data only.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

/// How a probe asks a backend whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// A TCP connection that opens is good.
    Tcp,
    /// A request that answers as it should is good.
    Http(HttpProbe),
    /// grpc.health.v1.Health/Check that answers SERVING is good.
    Grpc(GrpcProbe),
    /// A datagram that is answered as it should be is good.
    Udp(UdpProbe),
    /// A command that ends with status 0 is good.
    Exec(ExecProbe),
}

impl ProbeKind {
    /// Whether it needs a TCP port that answers.
    #[must_use]
    pub const fn is_by_tcp(&self) -> bool {
        matches!(self, Self::Tcp | Self::Http(_) | Self::Grpc(_))
    }
}

/// An HTTP request and the answers to it that are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Request method.
    pub method: String,
    /// Origin-form target, starting with `/`.
    pub path: String,
    /// `Host` header; the probed address where `None`.
    pub host: Option<String>,
    /// Further headers, each valid as such.
    pub headers: Vec<(String, String)>,
    /// Statuses that are good, as inclusive ranges.
    pub statuses: Vec<(u16, u16)>,
    /// A regular expression, valid as such, that the body must match somewhere in its first
    /// [`MAX_BODY`] bytes.
    pub body: Option<String>,
    /// Protocol version.
    pub version: HttpVersion,
    /// TLS, if the backend wants it.
    pub tls: Option<TlsProbe>,
}

/// Longest part of a body that a probe looks at, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// The HTTP version that a probe speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1 (RFC 9112).
    #[default]
    Http1,
    /// HTTP/2 (RFC 9113): by ALPN with TLS, else with prior knowledge.
    Http2,
}

/// A call of the standard health service
/// (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcProbe {
    /// The service that is asked about; empty: the server as a whole.
    pub service: String,
    /// `:authority`; the probed address where `None`.
    pub host: Option<String>,
    /// TLS, if the backend wants it.
    pub tls: Option<TlsProbe>,
}

/// Whom a probe takes for the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsProbe {
    /// The name that the certificate must be for, and that is sent as SNI; the probe's host, else the
    /// probed address, where `None`.
    pub name: Option<String>,
    /// A PEM file of the authorities that may have signed it; the system's where `None`.
    pub ca: Option<PathBuf>,
    /// Whether the certificate is verified at all.
    pub verify: bool,
}

/// A datagram and the answers to it that are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpProbe {
    /// What is sent; not empty.
    pub send: Vec<u8>,
    /// What an answer must contain; empty: any answer is good.
    pub expect: Vec<u8>,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecProbe {
    /// Program, by an absolute path, and arguments; not empty. No shell is involved.
    pub command: Vec<String>,
}

/// A pool's probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What to ask.
    pub kind: ProbeKind,
    /// The port to ask, where it is not the backend's own.
    pub port: Option<u16>,
    /// Backends that are asked at an address of their own.
    pub elsewhere: BTreeMap<SocketAddr, SocketAddr>,
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// The same while the last answers do not settle it; at most `interval`.
    pub doubt_interval: Duration,
    /// An answer must have come by then; at most `interval`.
    pub timeout: Duration,
    /// Consecutive good answers that bring a down backend back.
    pub rise: u32,
    /// Consecutive bad answers that take an up backend out.
    pub fall: u32,
}

impl ProbeSpec {
    /// Where a backend is asked.
    #[must_use]
    pub fn address_of(&self, backend: SocketAddr) -> SocketAddr {
        let own = SocketAddr::new(backend.ip(), self.port.unwrap_or(backend.port()));
        self.elsewhere.get(&backend).copied().unwrap_or(own)
    }

    /// From the start of one probe to the start of the next, after so many equal answers in a row. Too few
    /// to settle the state either way leave it in doubt.
    #[must_use]
    pub fn interval_after(&self, streak: u32) -> Duration {
        if streak < self.rise.max(self.fall) { self.doubt_interval } else { self.interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_and_how_often() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("address");
        let mut probe = ProbeSpec {
            kind: ProbeKind::Tcp,
            port: None,
            elsewhere: BTreeMap::from([(address("10.0.0.2:80"), address("10.1.0.2:9000"))]),
            interval: Duration::from_secs(2),
            doubt_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        };
        assert_eq!(probe.address_of(address("10.0.0.1:80")), address("10.0.0.1:80"));
        probe.port = Some(81);
        assert_eq!(probe.address_of(address("10.0.0.1:80")), address("10.0.0.1:81"));
        assert_eq!(probe.address_of(address("[::1]:80")), address("[::1]:81"));
        assert_eq!(probe.address_of(address("10.0.0.2:80")), address("10.1.0.2:9000"));
        let intervals = [0, 1, 2, 3, 9].map(|streak| probe.interval_after(streak).as_secs());
        assert_eq!(intervals, [1, 1, 1, 2, 2]);
    }
}
