//! docs/first-canary.md, as it stands there.

use std::{fs, path::Path, time::Duration};

use graylb_tests::{eventually::eventually, load::Load, stage::Stage};

/// The parts of the guide that are marked as this language.
fn blocks(guide: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let starts = guide.split(&fence).skip(1);
    starts.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_guide_works() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/first-canary.md");
    let guide = fs::read_to_string(path).expect("read the guide");
    let [config] = &blocks(&guide, "toml")[..] else { panic!("one config") };
    let stage = Stage::new(None);
    stage.installation.configure(config);
    let _agent = stage.installation.start();
    let _load = Load::short(&stage.host, Stage::endpoint(), 1);
    let ends = ["demo to green: promoted", "demo to red: rolled back: failures: fail, "];
    let steps = blocks(&guide, "sh");
    assert_eq!(steps.len(), ends.len());
    for (commands, end) in steps.iter().zip(ends) {
        for command in commands.lines() {
            let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
            let ran = stage.installation.cli(&arguments);
            assert_eq!(ran.code, 0, "{command}: {ran:?}");
        }
        eventually(end, Duration::from_secs(90), || {
            let ran = stage.installation.cli(&["rollout", "status", "demo"]);
            if ran.stdout.starts_with(end) { Ok(()) } else { Err(ran.stdout) }
        });
    }
    let turns = stage.turns(20);
    assert!(turns.iter().all(|name| ["83", "84"].contains(&name.as_str())), "green: {turns:?}");
}
