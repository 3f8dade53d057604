//! Servers of every kind that a probe may meet, well and unwell, all in one namespace.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use tonic::codegen::BoxStream;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

/// What a server does once a connection is open, TLS or not.
#[derive(Clone, Copy, Debug)]
pub enum Talk {
    /// HTTP/1.1: `/` answers 200 and "ready", `/slow` never, the rest 404.
    Http1,
    /// The same by HTTP/2.
    Http2,
    /// The health service of gRPC: the server and `shop` serve, `down` does not, `slow` never answers.
    Grpc,
    /// Reads, and says nothing.
    Hang,
    /// Says something else.
    Garbage,
    /// Cuts the connection.
    Cut,
}

/// The certificate that a server shows.
#[derive(Clone, Copy, Debug)]
pub enum Show {
    /// For shop.example and 127.0.0.1, of the right authority.
    Good,
    /// For other.example.
    OtherName,
    /// Expired.
    Expired,
    /// Of an authority that nobody knows.
    Unknown,
}

/// A server on a port of 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub port: u16,
    pub tls: Option<(Show, &'static [u8])>,
    pub talk: Talk,
}

/// A test authority, and what it has signed.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("an authority");
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Writes its certificate into `directory`.
    pub fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join("ca.pem");
        let mut file = std::fs::File::create(&path).expect("create ca.pem");
        file.write_all(self.certificate.pem().as_bytes()).expect("write ca.pem");
        path
    }

    fn server_config(&self, show: Show, alpn: &[u8]) -> ServerConfig {
        let names: &[&str] = match show {
            Show::OtherName => &["other.example"],
            _ => &["shop.example", "127.0.0.1"],
        };
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        if matches!(show, Show::Expired) {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("a server config");
        if !alpn.is_empty() {
            config.alpn_protocols = vec![alpn.to_vec()];
        }
        config
    }
}

/// Runs `servers`, and UDP servers on `echo` (says everything twice) and `mute`, on a thread of their own in
/// the calling thread's namespace, until the test ends. Returns when all of them listen.
pub fn serve(servers: &[Server], echo: u16, mute: u16, known: &Authority) {
    let unknown = Authority::new();
    let acceptor = |server: &Server| {
        server.tls.map(|(show, alpn)| {
            let authority = if matches!(show, Show::Unknown) { &unknown } else { known };
            TlsAcceptor::from(Arc::new(authority.server_config(show, alpn)))
        })
    };
    let listening: Vec<_> = servers
        .iter()
        .map(|server| {
            let address = SocketAddr::from(([127, 0, 0, 1], server.port));
            let listener = std::net::TcpListener::bind(address).expect("listen");
            listener.set_nonblocking(true).expect("nonblocking");
            (listener, acceptor(server), server.talk)
        })
        .collect();
    let [echo, mute] = [echo, mute].map(|port| {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", port)).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    });
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            for (listener, tls, talk) in listening {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::spawn(accept(listener, tls, talk));
            }
            let _keeps_its_port = UdpSocket::from_std(mute);
            twice(UdpSocket::from_std(echo).expect("a socket")).await;
        });
    });
}

async fn twice(socket: UdpSocket) {
    let mut datagram = [0; 1500];
    loop {
        let (length, peer) = socket.recv_from(&mut datagram).await.expect("receive");
        let _client_went_away = socket.send_to(&datagram[..length].repeat(2), peer).await;
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, talk: Talk) {
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        tokio::spawn(handle(stream, tls.clone(), talk));
    }
}

async fn handle(stream: TcpStream, tls: Option<TlsAcceptor>, talk: Talk) {
    match tls {
        None => converse(stream, talk).await,
        // A client that does not trust us goes away.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                converse(stream, talk).await;
            }
        }
    }
}

async fn converse<S>(mut stream: S, talk: Talk)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Whatever a probe breaks off is none of a server's errors.
    match talk {
        Talk::Http1 => {
            let service = service_fn(answer);
            let _ended =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
        Talk::Http2 => {
            let builder = http2::Builder::new(TokioExecutor::new());
            let _ended = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        }
        Talk::Grpc => {
            let service = TowerToHyperService::new(HealthServer::new(Healthy));
            let builder = http2::Builder::new(TokioExecutor::new());
            let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
        }
        Talk::Hang => {
            let mut rest = Vec::new();
            let _ended = stream.read_to_end(&mut rest).await;
        }
        Talk::Garbage => {
            let _ended = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            time::sleep(Duration::from_millis(100)).await;
        }
        Talk::Cut => drop(stream),
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (status, body) = match request.uri().path() {
        "/" => (200, "ready\n"),
        "/slow" => std::future::pending().await,
        _ => (404, "not here\n"),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    Ok(response)
}

struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
        let status = match request.get_ref().service.as_str() {
            "" | "shop" => ServingStatus::Serving,
            "down" => ServingStatus::NotServing,
            "slow" => std::future::pending().await,
            _ => return Err(tonic::Status::not_found("no such service")),
        };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        _request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("not needed"))
    }
}
