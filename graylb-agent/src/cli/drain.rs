//! `graylb drain` and `undrain`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Exit, args::ClientArguments, call, fail};
use crate::{
    api::DrainBody,
    client::{Client, ClientError},
    daemon::DrainReport,
};

/// The longest that one call waits, in seconds.
const ONE_CALL: u64 = 20;

/// Which backends of which pool.
pub(super) struct Which {
    pub(super) pool: String,
    pub(super) backends: Vec<SocketAddr>,
}

/// How long to wait for how few flows.
pub(super) struct Patience {
    pub(super) wait: Duration,
    pub(super) until: u64,
}

pub(super) fn drain(
    client: &ClientArguments,
    which: Which,
    force: bool,
    patience: Option<Patience>,
) -> Exit {
    let mut left = None;
    let exit = call(client, async |client: Client| {
        let Which { pool, backends } = which;
        let body = DrainBody { backends, force };
        let mut report: DrainReport =
            client.post(&format!("/v1/pools/{pool}/drain"), &body).await?;
        if let Some(Patience { wait, until }) = patience {
            report = waited(&client, &pool, &body.backends, wait, until).await?;
            left = Some(report.flows).filter(|flows| *flows > until);
        }
        Ok(described(&report))
    });
    match left {
        Some(flows) => fail(
            Exit::Refused,
            format_args!("{flows} flows are left after that time: not safe to stop yet"),
        ),
        None => exit,
    }
}

pub(super) fn undrain(client: &ClientArguments, which: Which) -> Exit {
    call(client, async |client: Client| {
        let Which { pool, backends } = which;
        let body = DrainBody { backends, force: false };
        let report: DrainReport = client.post(&format!("/v1/pools/{pool}/undrain"), &body).await?;
        Ok(described(&report))
    })
}

/// What is left once it is few enough, or the time has passed.
async fn waited(
    client: &Client,
    pool: &str,
    backends: &[SocketAddr],
    wait: Duration,
    until: u64,
) -> Result<DrainReport, ClientError> {
    let end = Instant::now() + wait;
    let backends: Vec<String> = backends.iter().map(ToString::to_string).collect();
    let backends = backends.join(",").replace('[', "%5B").replace(']', "%5D");
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait of less than a second waits.
        let wait = left.as_millis().div_ceil(1000).min(u128::from(ONE_CALL));
        let path = format!("/v1/pools/{pool}/drain?backends={backends}&until={until}&wait={wait}");
        let report: DrainReport = client.get(&path).await?;
        if report.flows <= until || Instant::now() >= end {
            return Ok(report);
        }
    }
}

fn described(report: &DrainReport) -> String {
    let warning = report.warning.iter().map(|warning| format!("warning: {warning}\n"));
    let backends = report.backends.iter().map(|backend| {
        let state = match (backend.drained, backend.takes_flows) {
            (true, _) => "drained",
            (false, true) => "takes new flows",
            (false, false) => "takes none for now",
        };
        let idle = match backend.flows {
            0 => String::new(),
            _ => format!(", idle for {} s at most", backend.longest_idle_seconds),
        };
        format!("{}  {state}, {} flows left{idle}\n", backend.address, backend.flows)
    });
    warning.chain(backends).collect()
}
