//! docs/kernels.md: what the kernels made of the programs when they were last tried.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context as _, bail};

use super::Report;
use crate::process;

const PAGE: &str = "docs/kernels.md";
const BEGIN: &str = "<!-- written by cargo xtask vm --fix -->";
const END: &str = "<!-- end -->";
/// A program that has grown by more than this, in percent, since the page was written wants the page written anew.
const GROWTH: u64 = 10;

/// Compares with the page, or writes its table anew.
pub(super) fn check(reports: &[Report], fix: bool) -> anyhow::Result<()> {
    let path = process::workspace().join(PAGE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{PAGE} lacks {BEGIN}"))?;
    let (known, after) = rest.split_once(END).with_context(|| format!("{PAGE} lacks {END}"))?;
    if fix {
        let table = table(reports);
        fs::write(&path, format!("{before}{BEGIN}\n{table}{END}{after}"))?;
        println!("vm: {PAGE} is written");
        return Ok(());
    }
    let grown = grown(known, reports);
    if !grown.is_empty() {
        bail!(
            "more than {GROWTH} % over {PAGE}: {}. If that is meant, `cargo xtask vm --fix` writes it anew",
            grown.join(", ")
        );
    }
    Ok(())
}

fn table(reports: &[Report]) -> String {
    let mut table = String::from("| program |");
    // Writing to a String does not fail.
    for report in reports {
        let _infallible = write!(table, " {}: bytes | verified |", report.release);
    }
    table += "\n| --- |";
    table += &" --- | --- |".repeat(reports.len());
    table.push('\n');
    let mut programs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (place, report) in reports.iter().enumerate() {
        for program in &report.programs {
            let row = programs.entry(&program.name).or_default();
            row.resize(place, " - | - |".into());
            row.push(format!(" {} | {} |", program.bytes, program.verified));
        }
    }
    for (name, row) in programs {
        let _infallible = writeln!(table, "| `{name}` |{}", row.concat());
    }
    table
}

/// Programs that the verifier has more work with than a table of the same kernels says.
fn grown(known: &str, reports: &[Report]) -> Vec<String> {
    let mut grown = Vec::new();
    let Some(header) = known.lines().find(|line| line.starts_with("| program")) else {
        return vec!["there is no table".into()];
    };
    for report in reports {
        let column = header.split('|').position(|cell| cell.contains(&report.release));
        // Another version of the kernel is no measure.
        let Some(column) = column else { continue };
        for program in &report.programs {
            let line = known.lines().find(|line| line.contains(&format!("`{}`", program.name)));
            let cell = line.and_then(|line| line.split('|').nth(column + 1));
            let verified: Option<u64> = cell.and_then(|cell| cell.trim().parse().ok());
            if verified.is_none_or(|known| program.verified > known + known * GROWTH / 100) {
                grown
                    .push(format!("{} on {} ({})", program.name, report.release, program.verified));
            }
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::{super::Program, *};

    fn report(verified: u64) -> Report {
        let program = Program { name: "graylb_xdp".into(), bytes: 10, verified };
        Report { release: "6.1.0".into(), programs: vec![program], ..Report::default() }
    }

    #[test]
    fn a_table_holds_for_what_it_was_made_from() {
        let written = table(&[report(1000)]);
        assert!(written.contains("| `graylb_xdp` | 10 | 1000 |"), "{written}");
        assert_eq!(grown(&written, &[report(1100)]), Vec::<String>::new());
        assert_eq!(grown(&written, &[report(1101)]).len(), 1);
        assert_eq!(grown("", &[report(1)]).len(), 1);
    }
}
