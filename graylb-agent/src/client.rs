//! The API's client, for the CLI.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time};

use crate::api::ErrorBody;

/// An answer must be there by then.
const TIMEOUT: Duration = Duration::from_secs(35);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "cannot reach the agent at {address}: {why}; is it running (`graylb run --config FILE`), and is --api right?"
    )]
    Unreachable {
        /// Where it was looked for.
        address: SocketAddr,
        /// What happened.
        why: String,
    },
    /// The agent refused.
    #[error("{message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its reason.
        message: String,
    },
}

/// What an agent answers.
struct Answer {
    status: StatusCode,
    /// What it is tagged with.
    revision: Option<u64>,
    body: Bytes,
}

/// Calls one agent.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    token: Option<String>,
}

impl Client {
    /// A client of the agent at `address`.
    #[must_use]
    pub const fn new(address: SocketAddr, token: Option<String>) -> Self {
        Self { address, token }
    }

    /// GETs and reads JSON.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(self.get_with_revision(path).await?.0)
    }

    /// The same, and the revision that the answer is tagged with.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn get_with_revision<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, Option<u64>), ClientError> {
        self.call(Method::GET, path, Bytes::new(), None).await
    }

    /// POSTs JSON and reads JSON.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, ClientError> {
        self.post_if(path, body, None).await
    }

    /// The same, on condition that what is changed is at a revision.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn post_if<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
        revision: Option<u64>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.unreachable(error))?;
        Ok(self.call(Method::POST, path, body.into(), revision).await?.0)
    }

    /// PUTs JSON and reads JSON, on the same condition.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn put_if<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
        revision: Option<u64>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.unreachable(error))?;
        Ok(self.call(Method::PUT, path, body.into(), revision).await?.0)
    }

    /// DELETEs and reads JSON, on the same condition.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn delete_if<T: DeserializeOwned>(
        &self,
        path: &str,
        revision: Option<u64>,
    ) -> Result<T, ClientError> {
        Ok(self.call(Method::DELETE, path, Bytes::new(), revision).await?.0)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        revision: Option<u64>,
    ) -> Result<(T, Option<u64>), ClientError> {
        let Answer { status, revision, body } =
            time::timeout(TIMEOUT, self.exchange(method, path, body, revision))
                .await
                .map_err(|_| self.unreachable(format!("no answer within {TIMEOUT:?}")))??;
        if status.is_success() {
            let answer = serde_json::from_slice(&body)
                .map_err(|error| self.unreachable(format!("not graylb's answer: {error}")))?;
            return Ok((answer, revision));
        }
        let message = match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => body.error.message,
            Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body).trim()),
        };
        Err(ClientError::Refused { status, message })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        revision: Option<u64>,
    ) -> Result<Answer, ClientError> {
        let stream =
            TcpStream::connect(self.address).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error))?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(revision) = revision {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        let request = request.body(Full::new(body)).map_err(|error| self.unreachable(error))?;
        let response =
            sender.send_request(request).await.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let revision = tag.and_then(|tag| tag.trim_matches('"').parse().ok());
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|error| self.unreachable(error))?;
        connection.abort();
        Ok(Answer { status, revision, body: body.to_bytes() })
    }

    fn unreachable(&self, why: impl ToString) -> ClientError {
        ClientError::Unreachable { address: self.address, why: why.to_string() }
    }
}
