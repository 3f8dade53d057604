//! Connections: how many, how long.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::Peer;

/// Connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// A request's head must be there by then, and an idle connection ends then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A request must be answered by then: the longest probe of a switch, and something over.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection ends then, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause after a failed accept (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, address)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    let served = connection(stream, Peer(address), router);
                    if time::timeout(CONNECTION_TIMEOUT, served).await.is_err() {
                        debug!("{address}: connection ended after {CONNECTION_TIMEOUT:?}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                warn!("cannot accept an API connection: {error}");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, router: Router) {
    let _small_answers_go_out_at_once = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(request, peer, router).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!("{}: {error}", peer.0);
    }
}

async fn answer(mut request: Request<Incoming>, peer: Peer, router: Router) -> Response {
    request.extensions_mut().insert(peer);
    let request = request.map(axum::body::Body::new);
    match time::timeout(REQUEST_TIMEOUT, router.oneshot(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}
