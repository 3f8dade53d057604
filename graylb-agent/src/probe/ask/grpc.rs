//! The standard health service of gRPC servers.

use std::net::SocketAddr;

use hyper::{Request, Uri, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::service_fn;

use super::{Asked, connect, http::AbortOnDrop, tls};
use crate::model::probe::GrpcProbe;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 4 << 10;

/// Asks once.
pub(super) async fn ask(probe: &GrpcProbe, address: SocketAddr, trust: &tls::Trust) -> Asked {
    match &probe.tls {
        None => check(probe, address, "http", connect::tcp(address).await?).await,
        Some(tls) => {
            let host = probe.host.as_deref();
            let stream = tls::connect(tls, address, host, tls::H2, trust).await?;
            check(probe, address, "https", stream).await
        }
    }
}

async fn check<S>(probe: &GrpcProbe, address: SocketAddr, scheme: &str, stream: S) -> Asked
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host = probe.host.clone().unwrap_or_else(|| address.to_string());
    let origin = Uri::builder().scheme(scheme).authority(host).path_and_query("/").build();
    let origin = origin.map_err(|error| error.to_string())?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| format!("not gRPC: {error}"))?;
    let _connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
    let channel = service_fn(move |request: Request<Body>| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    let mut client =
        HealthClient::with_origin(channel, origin).max_decoding_message_size(MAX_ANSWER);
    let request = HealthCheckRequest { service: probe.service.clone() };
    let answer = client.check(request).await;
    let answer = answer.map_err(|status| why(probe, &status))?.into_inner().status();
    match answer {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("{}, wanted SERVING", other.as_str_name())),
    }
}

fn why(probe: &GrpcProbe, status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::NotFound => format!("does not know the gRPC service {:?}", probe.service),
        tonic::Code::Unimplemented => "has no gRPC health service".into(),
        code => format!("gRPC: {code}: {}", super::excerpt(status.message().as_bytes())),
    }
}
