//! HTTP/1.1 and HTTP/2, with and without TLS.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response, Uri,
    body::{Body as _, Bytes, Incoming},
    client::conn::{http1, http2},
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
    time,
};

use super::{Asked, connect, excerpt, tls};
use crate::model::probe::{HttpProbe, HttpVersion, MAX_BODY};

/// Longest response head that a probe reads, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Longest time that a probe reads a body that does not matter.
const MAX_BODY_TIME: Duration = Duration::from_millis(100);

/// A response, and what reads its connection until this is dropped.
struct Answered {
    response: Response<Incoming>,
    _connection: AbortOnDrop,
}

/// A task that ends with its owner.
pub(super) struct AbortOnDrop(pub(super) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks once.
pub(super) async fn ask(probe: &HttpProbe, address: SocketAddr, trust: &tls::Trust) -> Asked {
    let answered = match &probe.tls {
        None => {
            let stream = connect::tcp(address).await?;
            exchange(probe, address, stream).await?
        }
        Some(tls) => {
            let alpn = match probe.version {
                HttpVersion::Http1 => tls::HTTP_1_1,
                HttpVersion::Http2 => tls::H2,
            };
            let stream = tls::connect(tls, address, probe.host.as_deref(), alpn, trust).await?;
            exchange(probe, address, stream).await?
        }
    };
    judge(probe, answered).await
}

/// The head of the answer to the probe's request; its body is still to come.
async fn exchange<S>(probe: &HttpProbe, address: SocketAddr, stream: S) -> Result<Answered, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let not_http = |error: hyper::Error| format!("not HTTP: {error}");
    let request = request(probe, address)?;
    let stream = TokioIo::new(stream);
    let (response, connection) = match probe.version {
        HttpVersion::Http1 => {
            let mut builder = http1::Builder::new();
            let (mut sender, connection) =
                builder.max_buf_size(MAX_HEAD).handshake(stream).await.map_err(not_http)?;
            let connection = tokio::spawn(connection).abort_handle();
            (sender.send_request(request).await, connection)
        }
        HttpVersion::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.max_header_list_size(MAX_HEAD as u32);
            let (mut sender, connection) = builder.handshake(stream).await.map_err(not_http)?;
            let connection = tokio::spawn(connection).abort_handle();
            (sender.send_request(request).await, connection)
        }
    };
    let _connection = AbortOnDrop(connection);
    Ok(Answered { response: response.map_err(not_http)?, _connection })
}

fn request(probe: &HttpProbe, address: SocketAddr) -> Result<Request<Empty<Bytes>>, String> {
    let host = probe.host.clone().unwrap_or_else(|| address.to_string());
    let mut request = Request::builder().method(probe.method.as_str());
    let mut headers = vec![(header::USER_AGENT, HeaderValue::from_static("graylb-probe"))];
    request = match probe.version {
        HttpVersion::Http1 => {
            headers.push((header::CONNECTION, HeaderValue::from_static("close")));
            let host = HeaderValue::from_str(&host).map_err(|error| error.to_string())?;
            headers.push((header::HOST, host));
            request.uri(&probe.path)
        }
        // The pseudo-headers :scheme and :authority stand for it (RFC 9113, 8.3.1).
        HttpVersion::Http2 => request.uri(
            Uri::builder()
                .scheme(if probe.tls.is_some() { "https" } else { "http" })
                .authority(host)
                .path_and_query(probe.path.as_str())
                .build()
                .map_err(|error| error.to_string())?,
        ),
    };
    for (name, value) in &probe.headers {
        let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
        let value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
        headers.retain(|(ours, _)| *ours != name);
        headers.push((name, value));
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(|error| error.to_string())
}

async fn judge(probe: &HttpProbe, mut answered: Answered) -> Asked {
    let status = answered.response.status().as_u16();
    if !probe.statuses.iter().any(|&(low, high)| (low..=high).contains(&status)) {
        return Err(format!("status {status}, wanted {}", Ranges(&probe.statuses)));
    }
    match &probe.body {
        Some(pattern) => check_body(pattern, answered.response.body_mut()).await,
        None => {
            drain(answered.response).await;
            Ok(())
        }
    }
}

/// Reads what follows a good status, up to bounds: a backend that is reset while it writes would log a
/// failed request for each probe. What comes does not matter.
async fn drain(response: Response<Incoming>) {
    let body = Limited::new(response.into_body(), MAX_BODY).collect();
    let _whatever_it_was = time::timeout(MAX_BODY_TIME, body).await;
}

async fn check_body(pattern: &str, body: &mut Incoming) -> Asked {
    let pattern = regex::bytes::Regex::new(pattern).map_err(|error| error.to_string())?;
    let mut seen = Vec::new();
    while !body.is_end_stream() && seen.len() < MAX_BODY {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| format!("the body broke off: {error}"))?;
        if let Some(data) = frame.data_ref() {
            seen.extend_from_slice(&data[..data.len().min(MAX_BODY - seen.len())]);
        }
    }
    if pattern.is_match(&seen) {
        return Ok(());
    }
    Err(format!("the body does not match {:?}: {:?}", pattern.as_str(), excerpt(&seen)))
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
