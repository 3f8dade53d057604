//! One probe: a spec and an address in, an answer out. A file for each way to ask.

mod connect;
mod exec;
mod grpc;
mod http;
mod tls;
mod udp;

use std::net::SocketAddr;

use tokio::time;

use crate::model::{
    health::{Answer, Target},
    probe::{ProbeKind, ProbeSpec},
};

/// What a way to ask found: `Err` says in a few words why the backend is not well.
type Asked = Result<(), String>;

/// Asks one backend, over and over.
pub struct Prober {
    target: Target,
    address: SocketAddr,
    spec: ProbeSpec,
    trust: tls::Trust,
}

impl Prober {
    /// One that asks `target` as `spec` says.
    #[must_use]
    pub fn new(target: Target, spec: ProbeSpec) -> Self {
        let address = spec.address_of(target.address);
        Self { target, address, spec, trust: tls::Trust::default() }
    }

    /// Whom it asks.
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// How it asks.
    #[must_use]
    pub const fn spec(&self) -> &ProbeSpec {
        &self.spec
    }

    /// Asks once, and waits for the answer at most the spec's timeout.
    ///
    /// Connections are closed by a reset: that leaves nothing in TIME_WAIT on either side, which thousands
    /// of probes a second would fill with.
    pub async fn ask(&self) -> Answer {
        let timeout = self.spec.timeout;
        let answer = match time::timeout(timeout, self.ask_patiently()).await {
            Ok(Ok(())) => return Answer::Good,
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {timeout:?}"),
        };
        // Perhaps the authorities' file is another one by now.
        self.trust.forget();
        Answer::Bad(self.elsewhere().map_or(answer.clone(), |at| format!("{answer} (asked {at})")))
    }

    /// The address asked, where it is not the backend's own.
    fn elsewhere(&self) -> Option<SocketAddr> {
        Some(self.address).filter(|&address| address != self.target.address)
    }

    async fn ask_patiently(&self) -> Asked {
        let (address, trust) = (self.address, &self.trust);
        match &self.spec.kind {
            ProbeKind::Tcp => connect::tcp(address).await.map(drop),
            ProbeKind::Http(probe) => http::ask(probe, address, trust).await,
            ProbeKind::Grpc(probe) => grpc::ask(probe, address, trust).await,
            ProbeKind::Udp(probe) => udp::ask(probe, address).await,
            ProbeKind::Exec(probe) => exec::ask(probe, &self.target, address).await,
        }
    }
}

/// `text` on one line, at most so long: what a backend says must not spoil the log.
fn excerpt(text: &[u8]) -> String {
    const LONGEST: usize = 120;
    let text = String::from_utf8_lossy(text);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let clean = line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = clean.clone().take(LONGEST).collect();
    if clean.count() > LONGEST {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;
