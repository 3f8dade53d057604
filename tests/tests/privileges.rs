//! The agent gives up what it does not need, and believes no path that others could change.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use graylb_agent::privileges::KEPT;
use graylb_tests::{
    agent::{Agent, Installation},
    eventually::{SOON, eventually},
    namespace::Namespace,
    sandbox::Sandbox,
    stage::Stage,
};

/// Line `name` of each of the agent's threads' status.
fn of_each_thread(agent: &Agent<'_>, name: &str) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", agent.number())).expect("threads");
    threads
        .map(|thread| {
            let file = thread.expect("a thread").path().join("status");
            let status = fs::read_to_string(file).expect("its status");
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            u64::from_str_radix(line.trim(), 16).expect("a mask")
        })
        .collect()
}

/// What is kept is enough for all that an agent does later: interfaces that appear, for either hook, the socket
/// hook, and another service.
#[test]
fn what_is_kept_is_all_there_is_and_enough() {
    let stage = Stage::new(Some(
        r#"{ type = "exec", command = ["/bin/sh", "-c", "grep CapEff /proc/self/status; exit 1"] }"#,
    ));
    let installation = &stage.installation;
    let agent = installation.launch();
    let kept = KEPT.iter().fold(0, |all, (_, one)| all | one.bits());
    for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
        let masks = of_each_thread(&agent, name);
        assert!(masks.len() > 1, "the sweep has a thread of its own");
        assert!(masks.iter().all(|mask| *mask == kept), "{name} {masks:x?}, not {kept:x}");
    }
    for name in ["CapInh:", "CapAmb:"] {
        assert!(of_each_thread(&agent, name).iter().all(|mask| *mask == 0), "{name}");
    }
    eventually("a probe's command has no more than the agent", SOON, || {
        let reason = agent.status()["services"][0]["backends"][0]["reason"].clone();
        let found = reason.as_str().unwrap_or_default().ends_with(&format!("{kept:016x}"));
        if found { Ok(()) } else { Err(reason) }
    });

    let more = "[interfaces.late]\nattach = \"xdp\"\n[interfaces.later]\nattach = \"tc\"\n\
                [socket_hook]\nenabled = true\n\
                [services.second]\naddress = \"127.0.0.1:8001\"\ndefault_pool = \"lua_upstream\"\n";
    installation.configure(&format!("{}{more}", Stage::config(None)));
    let reloaded = installation.cli(&["reload"]);
    assert_eq!(reloaded.code, 0, "{reloaded:?}");
    assert!(!reloaded.stdout.contains("not permitted"), "{reloaded:?}");
    let other = Namespace::add(&stage.sandbox, "other");
    stage.host.connect("late", &other, "far");
    stage.host.connect("later", &other, "farther");
    agent.wait_ready();
    eventually("everything is attached", SOON, || {
        let status = agent.status();
        let attached = status["interfaces"].as_array().expect("interfaces").len();
        let all = attached == 3 && !status["socket_hook"].is_null();
        if all { Ok(()) } else { Err(status) }
    });
    assert_eq!(stage.turns(2), ["81", "82"]);
    agent.stop();
}

fn refused(installation: &Installation, config: &Path, parts: &[&str]) {
    let ran = installation.fail_to_start(config);
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "no {part:?} in {ran:?}");
    }
    assert!(!installation.pin_dir().exists(), "nothing was loaded");
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn a_config_that_others_can_change_is_not_believed() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let config = installation.config_file();
    chmod(&config, 0o664);
    let why = "graylb.toml can be written by others (mode 664): chmod go-w it";
    refused(installation, &config, &[why]);
    chmod(&config, 0o644);
    let directory = config.parent().expect("a directory").join("links");
    fs::create_dir(&directory).expect("directory");
    let link = directory.join("link.toml");
    symlink(&config, &link).expect("link");
    std::os::unix::fs::lchown(&link, Some(12345), None).expect("chown");
    refused(installation, &link, &["link.toml belongs to user 12345: root or user 0 must own it"]);

    // A running agent goes on with what it has.
    let agent = installation.start();
    chmod(&config, 0o666);
    let reloaded = installation.cli(&["reload"]);
    assert_eq!(reloaded.code, 1, "{reloaded:?}");
    assert!(reloaded.stderr.contains("can be written by others (mode 666)"), "{reloaded:?}");
    assert_eq!(stage.turns(2), ["81", "82"]);
    agent.stop();
}

#[test]
fn a_command_that_others_can_change_is_not_run() {
    let sandbox = Sandbox::new();
    let script = sandbox.directory().join("check");
    fs::write(&script, "#!/bin/sh\n").expect("a script");
    chmod(&script, 0o775);
    let host = graylb_tests::topology::host(&sandbox);
    let probe = format!(r#"{{ type = "exec", command = [{script:?}], interval = "50ms" }}"#);
    let installation = Installation::new(&sandbox, &host, &Stage::config(Some(&probe)));
    let agent = installation.launch();
    let reason = |wanted: &str| {
        eventually(wanted, SOON, || {
            let backend = agent.status()["services"][0]["backends"][0].clone();
            if backend["reason"].as_str().is_some_and(|reason| reason.contains(wanted)) {
                Ok(())
            } else {
                Err(backend)
            }
        });
    };
    reason("not run: ");
    chmod(&script, 0o755);
    reason("probe answered");
}
