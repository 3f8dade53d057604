//! The state file, damaged in every way: the agent starts or says why not, sets the file aside, and uses
//! nothing of it.

use std::{fs, os::unix::fs as unix_fs, path::PathBuf};

use graylb_tests::{agent::Installation, stage::Stage};

/// A stage whose agent has switched to the other pool and stopped; the state file's contents.
fn switched() -> (Stage, Vec<u8>) {
    let stage = Stage::new(None);
    let agent = stage.installation.start();
    stage.installation.api().switch("demo", "lua_upstream");
    agent.stop();
    let state = fs::read(stage.installation.state_file()).expect("read the state file");
    (stage, state)
}

/// Files beside the state file.
fn aside(installation: &Installation) -> Vec<PathBuf> {
    let state = installation.state_file();
    let directory = state.parent().expect("a directory");
    let entries = fs::read_dir(directory).expect("read the directory");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| *path != state).collect()
}

type Damage = fn(&str) -> Vec<u8>;

/// What is done to a whole file, and what is said of it. `LENGTH` stands for the length of its body.
const DAMAGES: [(Damage, &str); 8] = [
    (|_| Vec::new(), "no header line"),
    (|state| state.as_bytes()[..8].to_vec(), "no header line"),
    (|state| state.as_bytes()[..state.len() - 10].to_vec(), "LENGTH bytes announced, "),
    (|state| format!("{state}x").into_bytes(), "LENGTH bytes announced, "),
    (|_| noise(), "the header is no text"),
    (|_| b"hello world\n{}\n".to_vec(), "the header is not graylb's"),
    // A pool that there is not, were it believed.
    (
        |state| state.replace("lua_upstream", "lua_upstreom").into_bytes(),
        "the checksum does not match",
    ),
    (
        |state| state.replacen("graylb-state 2 ", "graylb-state 3 ", 1).into_bytes(),
        "version 3, this graylb reads 2",
    ),
];

fn noise() -> Vec<u8> {
    (0..4096_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

#[test]
fn damaged() {
    let (stage, _) = switched();
    let installation = &stage.installation;
    for (number, (damage, why)) in DAMAGES.iter().enumerate() {
        let state = fs::read_to_string(installation.state_file()).expect("read the state file");
        let (_, body) = state.split_once('\n').expect("a header");
        let why = why.replace("LENGTH", &body.len().to_string());
        let damaged = damage(&state);
        fs::write(installation.state_file(), &damaged).expect("damage the state file");
        let before = aside(installation);
        let agent = installation.start();
        let log = installation.log();
        let mut set_aside = aside(installation);
        set_aside.retain(|path| !before.contains(path));
        let [set_aside] = set_aside.as_slice() else { panic!("{set_aside:?}\n{log}") };
        let warning = log
            .lines()
            .find(|line| line.contains(&*set_aside.to_string_lossy()))
            .unwrap_or_else(|| panic!("nothing is said of damage {number}: {log}"));
        let expected =
            format!("state file {} is damaged ({why}", installation.state_file().display());
        assert!(warning.contains(&expected), "no {expected:?} in {warning}");
        assert!(warning.ends_with("going on with nothing switched"), "{warning}");
        assert_eq!(fs::read(set_aside).expect("read what was set aside"), damaged);
        assert_eq!(agent.status()["services"][0]["overridden"], false, "damage {number}");
        assert_eq!(stage.turns(2), ["81", "82"], "nothing of the file is used");
        // With the next switch it is whole again.
        installation.api().switch("demo", "lua_upstream");
        agent.kill();
    }
    let _agent = installation.start();
    assert!(stage.turns(2).contains(&"83".to_owned()), "the last switch is in force");
}

#[test]
fn whole() {
    let (stage, _) = switched();
    let agent = stage.installation.start();
    assert_eq!(agent.status()["services"][0]["pool"], "lua_upstream");
    assert!(stage.turns(2).contains(&"83".to_owned()));
    assert!(aside(&stage.installation).is_empty());
}

#[test]
fn a_symbolic_link_is_refused() {
    let (stage, state) = switched();
    let installation = &stage.installation;
    let elsewhere = stage.sandbox.directory().join("elsewhere.json");
    fs::rename(installation.state_file(), &elsewhere).expect("move the state file");
    unix_fs::symlink(&elsewhere, installation.state_file()).expect("link");
    let ran = installation.fail_to_start(&installation.config_file());
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("it is a symbolic link; use a directory that only"), "{ran:?}");
    assert_eq!(fs::read(elsewhere).expect("read it"), state, "it is left alone");
    assert_eq!(stage.turns(2).len(), 2, "traffic goes on");
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let (stage, _) = switched();
    let installation = &stage.installation;
    let directory = installation.state_file().parent().expect("a directory").to_owned();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).expect("open it up");
    let ran = installation.fail_to_start(&installation.config_file());
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("can be written by others (mode 777)"), "{ran:?}");
}
