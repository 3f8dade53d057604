//! The demo's parts, in order, each with what must come out of it.

use anyhow::{Context as _, bail};
use graylb_common::{abi::ABI_VERSION, maps};

use super::{PIN_DIR, SERVICE_PORT, stage::Stage};

/// Requests of one part.
const REQUESTS: usize = 4;

/// Plays all parts.
pub(super) fn play(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let host = format!("127.0.0.1:{SERVICE_PORT}");
    part(&format!(
        "{host} is graylb's, in the kernel: new connections take turns in pool default_upstream."
    ));
    requests(stage, &["81", "82"])?;

    part("One curl sends all new connections to another pool.");
    switch(
        stage,
        "_switch_upstream?upstream=lua_upstream",
        &format!(
            "Current upstream is :default_upstream\n{host} change upstream from default_upstream to lua_upstream\n"
        ),
    )?;
    requests(stage, &["83", "84"])?;

    part("Or to a single address, which need not be a pool of the config.");
    switch(
        stage,
        "ups_update?ups=127.0.0.1:18083",
        &format!("{host} update upstream from lua_upstream to 127.0.0.1:18083\n"),
    )?;
    requests(stage, &["83"])?;

    part("And back.");
    switch(
        stage,
        "_switch_upstream?upstream=default_upstream",
        &format!(
            "Current upstream is :127.0.0.1:18083\n{host} change upstream from 127.0.0.1:18083 to default_upstream\n"
        ),
    )?;
    requests(stage, &["81", "82"])?;

    part(
        "The process of backend 18082 is killed: its probe notices, and new connections avoid it.",
    );
    stage.stop_backend(18082)?;
    stage.until_up(&[18081])?;
    status(stage, "DOWN")?;
    requests(stage, &["81"])?;

    part("It is started again, and gets its turns back.");
    stage.start_backend(18082)?;
    stage.until_up(&[18081, 18082])?;
    status(stage, "up")?;
    requests(stage, &["81", "82"])
}

/// What to try when everything is left running.
pub(super) fn invite(stage: &Stage<'_>) {
    let api = stage.api();
    part("Everything is left running. In another terminal, for example:");
    for line in [
        format!("curl 127.0.0.1:{SERVICE_PORT}"),
        format!(
            "curl '{api}/_switch_upstream?upstream=lua_upstream' -H 'Host: 127.0.0.1:{SERVICE_PORT}'"
        ),
        stage.graylb("switch demo default_upstream"),
        stage.graylb("status"),
        format!("bpftool map dump pinned {PIN_DIR}/abi-{ABI_VERSION}/maps/{}", maps::SERVICES_V4),
        format!("ls {PIN_DIR}/abi-{ABI_VERSION}/*"),
        format!("cat {}", stage.config_file().display()),
    ] {
        println!("$ {line}");
    }
    println!("\nCtrl-C ends it all and cleans up.");
}

fn part(headline: &str) {
    println!("\n# {headline}");
}

/// Runs and prints a command as a user would type it.
fn typed(stage: &Stage<'_>, line: &str) -> anyhow::Result<String> {
    println!("$ {line}");
    let answer = stage.shell(line)?;
    print!("{answer}");
    Ok(answer)
}

/// Makes requests and checks that these backends answer in turns, whoever is first.
fn requests(stage: &Stage<'_>, backends: &[&str]) -> anyhow::Result<()> {
    let line = format!("curl 127.0.0.1:{SERVICE_PORT}");
    let mut answers = Vec::new();
    for _ in 0..REQUESTS {
        answers.push(typed(stage, &line)?);
    }
    if !takes_turns(&answers, backends) {
        bail!(
            "the answers should take turns between {}, and were: {}",
            backends.join(" and "),
            answers.concat().trim().replace('\n', ", ")
        );
    }
    Ok(())
}

fn takes_turns(answers: &[String], backends: &[&str]) -> bool {
    let expected: Vec<String> =
        backends.iter().map(|backend| format!("{backend} server\n")).collect();
    let Some(first) = expected.iter().position(|answer| Some(answer) == answers.first()) else {
        return false;
    };
    expected.iter().cycle().skip(first).zip(answers).all(|(expected, answer)| expected == answer)
}

/// Calls the switch API and checks its answer.
fn switch(stage: &Stage<'_>, path: &str, expected: &str) -> anyhow::Result<()> {
    let api = stage.api();
    let line = format!("curl '{api}/{path}' -H 'Host: 127.0.0.1:{SERVICE_PORT}'");
    let answer = typed(stage, &line)?;
    if answer != expected {
        bail!("{line} should have answered\n{expected}and answered\n{answer}");
    }
    Ok(())
}

/// Shows the service's part of the status, and checks the state of backend 18082.
fn status(stage: &Stage<'_>, state: &str) -> anyhow::Result<()> {
    let line = stage.graylb("status");
    println!("$ {line}");
    let answer = stage.shell(&line)?;
    let service = answer
        .split("\n\n")
        .find(|block| block.trim_start().starts_with("demo "))
        .context("graylb status does not show the service demo")?;
    println!("{}", service.trim_end());
    let row = service.lines().find(|row| row.contains("127.0.0.1:18082")).unwrap_or("");
    if !row.split_whitespace().any(|word| word == state) {
        bail!("graylb status should show 127.0.0.1:18082 {state}, and shows: {row}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::takes_turns;

    #[test]
    fn turns_are_strict() {
        let answers =
            |list: &[&str]| list.iter().map(|a| format!("{a} server\n")).collect::<Vec<_>>();
        assert!(takes_turns(&answers(&["81", "82", "81", "82"]), &["81", "82"]));
        assert!(takes_turns(&answers(&["82", "81", "82", "81"]), &["81", "82"]));
        assert!(takes_turns(&answers(&["83", "83"]), &["83"]));
        assert!(!takes_turns(&answers(&["81", "81", "82", "82"]), &["81", "82"]));
        assert!(!takes_turns(&answers(&["83"]), &["81", "82"]));
        assert!(!takes_turns(&[], &["81"]));
    }
}
