//! Interfaces: the rules of the config × the devices that there are → where to attach, and what is
//! missing.
//!
//! A rule names its interfaces exactly or by a pattern with `*` (any characters) and `?` (one). For each
//! device at most one rule holds: the exact one, else the pattern with the most plain characters, else the
//! one of those with the most `?`.

use std::fmt;

/// Longest interface name (IFNAMSIZ less the final zero, include/uapi/linux/if.h).
const MAX_NAME: usize = 15;
/// Longest pattern: a name, and a `*` between any two characters.
const MAX_PATTERN: usize = 2 * MAX_NAME + 1;

/// How graylb attaches to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TC on loopback, veth and other virtual devices; native XDP on a NIC whose driver takes it, else TC.
    #[default]
    Auto,
    /// TC.
    Tc,
    /// Native XDP, and TC on the way out.
    Xdp,
}

/// Interfaces that graylb attaches to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Which.
    pub pattern: Pattern,
    /// How.
    pub attach: AttachMode,
}

/// A network device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number, which no other device gets while it lives.
    pub index: u32,
    /// Its name at the moment.
    pub name: String,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// The kernel's name for its kind if it is a virtual one: `veth`, `bridge`, `vlan`, ...
    pub kind: Option<String>,
}

/// A device that a rule holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The device.
    pub device: Device,
    /// The rule.
    pub rule: InterfaceConfig,
}

/// What rules ask for, given the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Plan {
    /// Where to attach, in the order of the devices.
    pub wanted: Vec<Wanted>,
    /// Exact names that no device has. A pattern that matches nothing is fine.
    pub absent: Vec<String>,
}

/// Which rule holds for which device.
pub fn plan(rules: &[InterfaceConfig], devices: &[Device]) -> Plan {
    let rule = |device: &Device| {
        let holds = rules.iter().filter(|rule| rule.pattern.matches(&device.name));
        holds.max_by_key(|rule| rule.pattern.rank()).cloned()
    };
    let wanted = devices
        .iter()
        .filter_map(|device| Some(Wanted { rule: rule(device)?, device: device.clone() }))
        .collect();
    let absent = rules
        .iter()
        .filter(|rule| rule.pattern.is_exact())
        .filter(|rule| !devices.iter().any(|device| rule.pattern.matches(&device.name)))
        .map(|rule| rule.pattern.to_string())
        .collect();
    Plan { wanted, absent }
}

/// An interface name, or a pattern for some.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(String);

/// A text that can match no interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no interface name or pattern: 1 to {MAX_NAME} characters, none of / : or space; * stands for any characters, ? for one"
)]
pub struct PatternError(String);

impl Pattern {
    /// Checks a text.
    ///
    /// # Errors
    ///
    /// No interface can have such a name.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let shortest = text.len() - text.matches('*').count();
        // As dev_valid_name (net/core/dev.c) has it.
        let bad = text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
        let good = !text.is_empty()
            && text.len() <= MAX_PATTERN
            && shortest <= MAX_NAME
            && !bad
            && text != "."
            && text != "..";
        if good { Ok(Self(text.to_owned())) } else { Err(PatternError(text.to_owned())) }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one name.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// Whether an interface of this name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut seen) = (0, 0);
        // Where to go on if what follows the last star does not fit: it takes one character more.
        let mut star: Option<(usize, usize)> = None;
        while seen < name.len() {
            match pattern.get(at) {
                Some('*') => {
                    star = Some((at + 1, seen));
                    at += 1;
                }
                Some(&c) if c == '?' || c == name[seen] => {
                    at += 1;
                    seen += 1;
                }
                _ => {
                    let Some((after, from)) = star else { return false };
                    star = Some((after, from + 1));
                    (at, seen) = (after, from + 1);
                }
            }
        }
        pattern[at..].iter().all(|c| *c == '*')
    }

    /// What decides between two that match: the higher one holds.
    fn rank(&self) -> (bool, usize, usize) {
        let wild = self.0.chars().filter(|c| matches!(c, '*' | '?')).count();
        let plain = self.0.chars().count() - wild;
        (self.is_exact(), plain, self.0.matches('?').count())
    }

    /// A name that this and another pattern match and neither is the better match for.
    #[must_use]
    pub fn tie(&self, other: &Self) -> Option<String> {
        if self.rank() != other.rank() {
            return None;
        }
        shortest_common(&self.0, &other.0).filter(|name| name.len() <= MAX_NAME)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A shortest name that both patterns match.
fn shortest_common(a: &str, b: &str) -> Option<String> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // best[i][j]: for what is left of `a` from i and of `b` from j.
    let mut best: Vec<Vec<Option<String>>> = vec![vec![None; b.len() + 1]; a.len() + 1];
    for i in (0..=a.len()).rev() {
        for j in (0..=b.len()).rev() {
            let with = |c: char, rest: &Option<String>| rest.as_ref().map(|r| format!("{c}{r}"));
            let found = match (a.get(i), b.get(j)) {
                (None, None) => Some(String::new()),
                (Some('*'), None) => best[i + 1][j].clone(),
                (None, Some('*')) => best[i][j + 1].clone(),
                (Some('*'), Some(&c)) => {
                    let taken =
                        if c == '*' { best[i][j + 1].clone() } else { with(c, &best[i][j + 1]) };
                    shorter(best[i + 1][j].clone(), taken)
                }
                (Some(&c), Some('*')) => shorter(best[i][j + 1].clone(), with(c, &best[i + 1][j])),
                (Some('?'), Some(&c)) => with(c, &best[i + 1][j + 1]),
                (Some(&c), Some(&d)) if c == d || d == '?' => with(c, &best[i + 1][j + 1]),
                _ => None,
            };
            best[i][j] = found;
        }
    }
    // What is left as `?` was free in both.
    best[0][0].take().map(|name| name.replace('?', "x"))
}

fn shorter(a: Option<String>, b: Option<String>) -> Option<String> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.len() < a.len() { b } else { a }),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests;
