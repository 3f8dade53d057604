//! Which rule holds for which interface.

use proptest::prelude::*;

use super::*;

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a pattern")
}

fn rule(text: &str) -> InterfaceConfig {
    InterfaceConfig { pattern: pattern(text), attach: AttachMode::Auto }
}

fn device(index: u32, name: &str) -> Device {
    Device { index, name: name.to_owned(), loopback: false, kind: None }
}

#[test]
fn patterns_match_as_in_a_shell() {
    for (text, name, matches) in [
        ("eth0", "eth0", true),
        ("eth0", "eth01", false),
        ("eth?", "eth0", true),
        ("eth?", "eth", false),
        ("eth?", "eth10", false),
        ("veth*", "veth", true),
        ("veth*", "veth1a2b", true),
        ("veth*", "eth0", false),
        ("*", "lo", true),
        ("e*0", "enp3s0", true),
        ("e*0s?", "enp0s0s1", true),
        ("e*0s?", "enp0s0s", false),
        ("*a*b*", "xxaxbx", true),
        ("*a*b*", "xxbxa", false),
        ("eth0.[1]", "eth0.[1]", true),
    ] {
        assert_eq!(pattern(text).matches(name), matches, "{text} {name}");
    }
}

#[test]
fn impossible_names_are_refused() {
    for text in
        ["", ".", "..", "a b", "a/b", "a:b", "a\tb", "sixteen-letters-", "?????????????????"]
    {
        assert!(Pattern::new(text).is_err(), "{text:?}");
    }
    for text in ["fifteen-letters", "*fifteen-letters*", "???????????????", "ü*"] {
        assert!(Pattern::new(text).is_ok(), "{text:?}");
    }
}

#[test]
fn the_best_rule_holds() {
    let rules = ["*", "eth*", "eth?", "e*", "eth0", "eth9"].map(rule);
    let devices = ["lo", "eth0", "eth1", "eth10", "ens3"]
        .iter()
        .zip(1..)
        .map(|(name, index)| device(index, name))
        .collect::<Vec<_>>();
    let Plan { wanted, absent } = plan(&rules, &devices);
    let chosen: Vec<_> =
        wanted.iter().map(|w| (w.device.name.as_str(), w.rule.pattern.as_str())).collect();
    assert_eq!(
        chosen,
        [("lo", "*"), ("eth0", "eth0"), ("eth1", "eth?"), ("eth10", "eth*"), ("ens3", "e*")]
    );
    assert_eq!(absent, ["eth9"]);
}

#[test]
fn ties_are_found_with_an_example() {
    for (a, b, example) in [
        ("a*", "*a", Some("a")),
        ("eth*", "e*th", Some("eth")),
        ("eth?", "?eth", None),
        ("e?h?", "e??h", Some("exhh")),
        ("veth*", "eth1*", None),
        ("eth*", "eth?", None),
        ("eth0", "eth*", None),
        ("abcdefgh*", "*ijklmnop", None),
        ("a*b", "b*a", None),
        ("a?", "?b", Some("ab")),
    ] {
        assert_eq!(pattern(a).tie(&pattern(b)).as_deref(), example, "{a} {b}");
        assert_eq!(pattern(b).tie(&pattern(a)).is_some(), example.is_some(), "{b} {a}");
    }
}

/// What a pattern means, said in the plainest way.
fn means(pattern: &[char], name: &[char]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some('*'), _) => {
            means(&pattern[1..], name) || !name.is_empty() && means(pattern, &name[1..])
        }
        (Some(p), Some(n)) => (*p == '?' || p == n) && means(&pattern[1..], &name[1..]),
        _ => false,
    }
}

proptest! {
    #[test]
    fn matching_is_what_it_means(text in "[ab*?]{1,8}", name in "[ab]{0,8}") {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        prop_assert_eq!(pattern(&text).matches(&name), means(&chars(&text), &chars(&name)));
    }

    #[test]
    fn a_tie_is_found_if_there_is_one(a in "[ab*?]{1,6}", b in "[ab*?]{1,6}", name in "[ab]{1,8}") {
        let (a, b) = (pattern(&a), pattern(&b));
        if let Some(example) = a.tie(&b) {
            prop_assert!(a.matches(&example) && b.matches(&example), "{}", example);
        } else if a.matches(&name) && b.matches(&name) {
            prop_assert_ne!(a.rank(), b.rank());
        }
    }

    #[test]
    fn without_ties_the_order_of_rules_does_not_matter(
        texts in proptest::collection::vec("[ab*?]{1,4}", 1..5),
        name in "[ab]{1,4}",
    ) {
        let mut rules: Vec<_> = texts.iter().map(|text| rule(text)).collect();
        let tie = rules.iter().enumerate().any(|(at, rule)| {
            rules[at + 1..].iter().any(|other| rule.pattern.tie(&other.pattern).is_some())
        });
        prop_assume!(!tie);
        let devices = [device(1, &name)];
        let wanted = plan(&rules, &devices).wanted;
        rules.reverse();
        prop_assert_eq!(wanted, plan(&rules, &devices).wanted);
    }
}
