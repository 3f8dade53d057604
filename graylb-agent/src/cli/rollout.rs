//! `graylb rollout`: a service's rollout, started, commanded and shown.

use std::fmt::Write as _;

use serde_json::json;

use super::{
    Exit,
    args::{ClientArguments, PlanArguments, RolloutCommand, RolloutTarget},
    call,
};
use crate::{api::RolloutBody, client::Client, daemon::RolloutReport};

pub(super) fn rollout(command: RolloutCommand) -> Exit {
    match command {
        RolloutCommand::Start { client, service, plan, if_revision } => {
            start(&client, &service, plan, if_revision)
        }
        RolloutCommand::Status { target: RolloutTarget { client, service }, json } => {
            call(&client, async |client: Client| {
                let report: RolloutReport = client.get(&path(&service)).await?;
                Ok(if json { format!("{:#}\n", json!(report)) } else { described(&report) })
            })
        }
        RolloutCommand::Pause(target) => order(&target, "pause"),
        RolloutCommand::Resume(target) => order(&target, "resume"),
        RolloutCommand::Promote(target) => order(&target, "promote"),
        RolloutCommand::Abort(target) => order(&target, "abort"),
    }
}

fn path(service: &str) -> String {
    format!("/v1/services/{service}/rollout")
}

fn start(
    client: &ClientArguments,
    service: &str,
    plan: PlanArguments,
    if_revision: Option<u64>,
) -> Exit {
    let PlanArguments { to, steps, hold, patience, lease, gates, min_samples } = plan;
    let body = RolloutBody { to, steps, hold, patience, lease: Some(lease), gates, min_samples };
    call(client, async |client: Client| {
        let report = client.post_if(&path(service), &body, if_revision).await?;
        Ok(headline(&report))
    })
}

fn order(RolloutTarget { client, service }: &RolloutTarget, order: &str) -> Exit {
    call(client, async |client: Client| {
        let report = client.post(&format!("{}/{order}", path(service)), &json!({})).await?;
        Ok(headline(&report))
    })
}

fn headline(report: &RolloutReport) -> String {
    let RolloutReport { service, to, state, share, steps, step, held_ms, hold_ms, .. } = report;
    let place = match step {
        Some(step) => {
            format!(", step {step} of {}, {} of {} s", steps.len(), held_ms / 1000, hold_ms / 1000)
        }
        None => String::new(),
    };
    format!("{service} to {to}: {state}; {share} of the clients{place}\n")
}

fn described(report: &RolloutReport) -> String {
    let mut text = headline(report);
    for gate in &report.gates {
        // Writing to a String does not fail.
        let _infallible = writeln!(text, "  {gate}");
    }
    for event in &report.events {
        let _infallible = writeln!(text, "  {} {}", clock(event.unix_seconds), event.what);
    }
    text
}

/// The time of day, UTC.
fn clock(unix_seconds: u64) -> String {
    let of_day = unix_seconds % 86_400;
    format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}
