//! The API over one connection, for calls in quick succession.

use crate::client::Connection;

/// A connection to the API.
#[derive(Debug)]
pub struct Api(pub(crate) Connection);

impl Api {
    /// Switches a service, and returns with the answer, which must be a good one.
    ///
    /// # Panics
    ///
    /// The switch is refused.
    pub fn switch(&mut self, service: &str, pool: &str) {
        self.try_switch(service, pool)
            .unwrap_or_else(|why| panic!("switch of {service} to {pool}: {why}"));
    }

    /// Switches a service.
    ///
    /// # Errors
    ///
    /// The switch is refused, or the agent is gone.
    pub fn try_switch(&mut self, service: &str, pool: &str) -> Result<(), String> {
        let body = format!("{{\"pool\": {pool:?}}}");
        let path = format!("/v1/services/{service}/switch");
        let json = "Content-Type: application/json\r\n";
        match self.0.request("POST", &path, json, &body) {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(failure) => Err(failure.to_string()),
        }
    }
}
