//! What an agent leaves and finds: stopping keeps traffic, unloading removes everything, and pins that
//! are somebody else's are left alone.

use std::{fs, path::Path};

use graylb_common::maps;
use graylb_tests::{
    agent::{Installation, Ran},
    client,
    eventually::{SOON, eventually},
    namespace::output,
    stage::Stage,
};

/// Numbers of the BPF objects pinned below a directory of an installation.
fn pinned(installation: &Installation, kind: &str, directory: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(installation.pin(directory)).expect("read the pins") {
        let path = entry.expect("an entry").path();
        let text = output("bpftool", &["--json", kind, "show", "pinned", &path.to_string_lossy()]);
        let object: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        numbers.push(object["id"].as_u64().expect("an id"));
    }
    numbers
}

/// Whether the kernel has a BPF object.
fn exists(kind: &str, number: u64) -> bool {
    let command = &mut std::process::Command::new("bpftool");
    let output = command.args([kind, "show", "id", &number.to_string()]).output();
    output.expect("run bpftool").status.success()
}

#[test]
fn stopping_keeps_traffic_and_unloading_removes_everything() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let pin_dir = installation.pin_dir().to_str().expect("a plain path");
    let unload = ["unload", "--pin-dir", pin_dir];
    let agent = installation.start();
    let refused = installation.cli(&unload);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("another graylb agent is running on"), "{refused:?}");

    agent.stop();
    assert_eq!(stage.turns(4), ["81", "82", "81", "82"]);
    let objects = [("map", "maps"), ("prog", "programs"), ("link", "links")]
        .map(|(kind, directory)| (kind, pinned(installation, kind, directory)));
    let (maps, programs) = (maps::ALL.len(), maps::PROGRAMS.len());
    assert_eq!(objects.each_ref().map(|(_, numbers)| numbers.len()), [maps, programs, 1]);

    let unloaded = installation.cli(&unload);
    assert_eq!((unloaded.code, unloaded.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = unloaded.stdout.lines().collect();
    assert_eq!(lines.len(), maps + programs + 1 + 1, "{lines:?}");
    assert_eq!(lines.first(), Some(&"detached tc_in:lo"));
    assert_eq!(lines.last(), Some(&format!("removed {pin_dir}").as_str()));
    assert!(!Path::new(pin_dir).exists());
    for (kind, numbers) in objects {
        for number in numbers {
            eventually("objects go", SOON, || {
                if exists(kind, number) { Err((kind, number)) } else { Ok(()) }
            });
        }
    }
    let failure = stage.host.run(|| client::ask(Stage::endpoint())).expect_err("nobody answers");
    assert_eq!(failure.step, "connect");
    let again = installation.cli(&unload);
    assert_eq!((again.code, again.stdout), (0, format!("nothing to remove in {pin_dir}\n")));
}

#[test]
fn a_second_agent_is_refused() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let agent = installation.start();
    let config = fs::read_to_string(installation.config_file()).expect("read the config");
    let other = stage.sandbox.directory().join("other.toml");
    let other_state = format!("{:?}", stage.sandbox.directory().join("other").join("state.json"));
    let state = format!("{:?}", installation.state_file());
    fs::write(
        &other,
        format!("{config}\n[api]\nlisten = \"127.0.0.1:7879\"\n").replace(&state, &other_state),
    )
    .expect("write the other config");
    let Ran { code, stderr, .. } = installation.fail_to_start(&other);
    assert_eq!(code, 4, "{stderr}");
    let expected = format!(
        "graylb: another graylb agent is running on {}: stop it first, or give this one another agent.pin_dir\n",
        installation.pin_dir().display()
    );
    assert_eq!(stderr, expected);
    assert_eq!(stage.turns(2), ["81", "82"], "the first is at work");
    agent.stop();
}

#[test]
fn pins_of_another_version_are_refused() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    let pin_dir = installation.pin_dir();
    fs::create_dir_all(pin_dir.join("abi-999").join("maps")).expect("make other pins");
    let Ran { code, stderr, .. } = installation.fail_to_start(&installation.config_file());
    assert_eq!(code, 4, "{stderr}");
    let way_out = format!("`graylb unload --pin-dir {}`", pin_dir.display());
    for part in ["holds pins of abi-999", "speaks abi-", "run the graylb that made them", &way_out]
    {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert!(pin_dir.join("abi-999").join("maps").exists(), "they are left alone");
    let mine: Vec<_> = fs::read_dir(pin_dir).expect("read the pins").collect();
    assert_eq!(mine.len(), 1, "nothing was added: {mine:?}");

    // The way out works.
    let unloaded = installation.cli(&["unload", "--pin-dir", &pin_dir.to_string_lossy()]);
    assert_eq!(unloaded.code, 0, "{unloaded:?}");
    let _agent = installation.start();
    assert_eq!(stage.turns(2), ["81", "82"]);
}

#[test]
fn a_directory_that_is_not_graylbs_is_left_alone() {
    let stage = Stage::new(None);
    let pin_dir = stage.installation.pin_dir();
    fs::create_dir_all(pin_dir.join("precious")).expect("make a directory");
    let refused = stage.installation.cli(&["unload", "--pin-dir", &pin_dir.to_string_lossy()]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("holds precious, which is not graylb's"), "{refused:?}");
    assert!(pin_dir.join("precious").exists());
}

#[test]
fn a_failed_start_leaves_nothing() {
    let stage = Stage::new(None);
    let installation = &stage.installation;
    stage.host.ip("link add name bridge7 type bridge");
    let lo = "[interfaces.lo]";
    let refused = Stage::config(None).replace(lo, "[interfaces.bridge7]\nattach = \"xdp\"");
    installation.configure(&refused);
    let Ran { code, stderr, .. } = installation.fail_to_start(&installation.config_file());
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("cannot attach to bridge7 by native XDP"), "{stderr}");
    assert!(!installation.pin_dir().exists(), "the pins are gone again");

    // Nor does it hurt what an earlier agent left.
    installation.configure(&Stage::config(None));
    installation.start().stop();
    installation.configure(&refused);
    let Ran { code, .. } = installation.fail_to_start(&installation.config_file());
    assert_eq!(code, 4);
    assert_eq!(stage.turns(2), ["81", "82"]);
}
