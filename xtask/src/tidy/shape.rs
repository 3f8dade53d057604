//! Sizes of files and functions, and that each file says what it is for.

use super::{Finding, Source, unsafety, words::find_word};

/// Longest function, in lines.
const FUNCTION: usize = 70;
/// Longest file without its tests, in lines.
const FILE: usize = 500;
/// The same for the packet path.
const EBPF_FILE: usize = 400;

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !source.text.trim().is_empty() && !source.text.starts_with("//!") {
        let what = "no //! at the start: say what the module is for, what goes in, what comes out";
        findings.push(Finding::new(source, 0, what));
    }
    // The two files that all unsafe code is kept in cannot be split as others can.
    let of_the_packet_path =
        source.path.starts_with("graylb-ebpf/") && !unsafety::may_be_unsafe(source);
    let longest = if of_the_packet_path { EBPF_FILE } else { FILE };
    let lines = source.lines_without_tests();
    if lines > longest && !source.is_test() {
        let what = format!("{lines} lines without tests, of at most {longest}: split the file");
        findings.push(Finding::new(source, longest, what));
    }
    for (line, name, length) in functions(&source.views.code) {
        if length > FUNCTION {
            let what = format!("{name} has {length} lines, of at most {FUNCTION}: split it");
            findings.push(Finding::new(source, line, what));
        }
    }
    findings
}

/// Functions with a body: first line, name, number of lines.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let starts = code.lines().scan(0, |at, line| {
        let start = *at;
        *at += line.len() + 1;
        Some((start, line))
    });
    let mut functions = Vec::new();
    for (number, (start, line)) in starts.enumerate() {
        let Some(at) = find_word(line, "fn") else { continue };
        let rest = &line[at + 2..];
        let name: String =
            rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // `fn(u8)` is a type.
        if name.is_empty() {
            continue;
        }
        if let Some(length) = body_end(&code[start + at..]) {
            let lines = code[start + at..start + at + length].lines().count();
            functions.push((number, name, lines));
        }
    }
    functions
}

/// Where the body that begins after a signature ends; none for a declaration.
fn body_end(code: &str) -> Option<usize> {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces = braces.saturating_sub(1);
                if braces == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn modules_say_what_they_are_for() {
        assert!(found("xtask/src/a.rs", "use std::fs;\n")[0].contains("//!"));
        assert_eq!(found("xtask/src/a.rs", "//! Reads.\nuse std::fs;\n").len(), 0);
    }

    #[test]
    fn files_have_a_longest() {
        let long = format!("//! Long.\n{}", "const A: u8 = 0;\n".repeat(450));
        assert_eq!(found("graylb-agent/src/a.rs", &long).len(), 0);
        assert!(found("graylb-ebpf/src/a.rs", &long)[0].contains("451 lines"));
        let tests = format!("//! Short.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(600));
        assert_eq!(found("graylb-agent/src/a.rs", &tests).len(), 0);
    }

    #[test]
    fn functions_have_a_longest() {
        let function = |lines: usize| {
            format!("//! F.\nfn f(a: [u8; 2]) -> u8 {{\n{}}}\n", "    g();\n".repeat(lines - 2))
        };
        assert_eq!(found("xtask/src/a.rs", &function(70)).len(), 0);
        assert!(found("xtask/src/a.rs", &function(71))[0].contains("f has 71 lines"));
        let declared = format!("//! T.\ntrait T {{\n    fn f(&self);\n{}}}\n", "\n".repeat(80));
        assert_eq!(found("xtask/src/a.rs", &declared).len(), 0);
    }
}
