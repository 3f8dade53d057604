//! Switches, probes and what comes of them, step by step and in any order.

use proptest::prelude::*;

use super::*;
use crate::{
    compile::{Image, compile, diff},
    config::Config,
    model::{balance::Balance, changes::SplitChange},
};

const CONFIG: &str = r#"
[interfaces.lo]
[services.shop]
address = "127.0.0.1:8000"
aliases = ["shop.example"]
default_pool = "blue"
[services.web]
address = "127.0.0.1:8001"
default_pool = "blue"
[pools.blue]
backends = ["127.0.0.1:81", "127.0.0.1:82"]
probe = { type = "tcp", rise = 1, fall = 1 }
[pools.green]
backends = ["127.0.0.1:83", "127.0.0.1:84"]
probe = { type = "tcp", rise = 1, fall = 1 }
[pools.six]
backends = ["[::1]:83"]
"#;

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn fresh() -> State {
    let (config, _) = Config::parse(CONFIG, "f").expect("config");
    State::new(config.spec, BTreeMap::new(), Drained::default(), &BTreeMap::new())
}

fn answer_all(state: &mut State, answer: &Answer) {
    for target in state.targets().keys() {
        let _change = state.observe(target, answer);
    }
}

fn healthy() -> State {
    let mut state = fresh();
    answer_all(&mut state, &Answer::Good);
    state
}

fn bad() -> Answer {
    Answer::Bad("connection refused".into())
}

#[test]
fn nobody_is_trusted_before_the_first_good_answer() {
    let mut state = fresh();
    assert!(compile(&state, &Image::new()).is_empty());
    answer_all(&mut state, &bad());
    assert!(compile(&state, &Image::new()).is_empty());
    answer_all(&mut state, &Answer::Good);
    assert_eq!(compile(&state, &Image::new()).len(), 2);
}

#[test]
fn when_all_are_down_the_last_good_set_stays() {
    let mut state = healthy();
    let installed = compile(&state, &Image::new());
    answer_all(&mut state, &bad());
    assert!(diff(&installed, &compile(&state, &installed)).is_empty());
}

#[test]
fn a_restart_resumes_what_was_known() {
    let known = healthy().known_health();
    let state = State::new(fresh().spec().clone(), BTreeMap::new(), Drained::default(), &known);
    assert_eq!(compile(&state, &Image::new()).len(), 2);
}

#[test]
fn choices_are_pools_or_addresses() {
    let state = healthy();
    let shop = name("shop");
    let text = |asked| state.choice(&shop, asked).map(|(choice, _)| choice.to_string());
    assert_eq!(text("green").as_deref(), Ok("green"));
    assert_eq!(text("127.0.0.1:83, 127.0.0.2").as_deref(), Ok("127.0.0.1:83,127.0.0.2:8000"));
    assert!(
        matches!(text("gren"), Err(SwitchError::UnknownPool { known, .. }) if known.len() == 3)
    );
    assert!(matches!(text("six"), Err(SwitchError::Unfit(_))));
    assert!(matches!(text("127.0.0.1"), Err(SwitchError::Unfit(_))), "the service's own address");
    assert!(matches!(text("10.0.0.1"), Err(SwitchError::Unfit(_))), "not on this host");
    assert!(matches!(text("127.0.0.1:83,127.0.0.1:83"), Err(SwitchError::Unfit(_))));
}

#[test]
fn addresses_are_balanced_as_the_default_pool_is() {
    let text = CONFIG.replace("[pools.blue]", "[pools.blue]\nbalance = \"sticky\"");
    let (config, _) = Config::parse(&text, "f").expect("config");
    let state = State::new(config.spec, BTreeMap::new(), Drained::default(), &BTreeMap::new());
    let balance = |asked: &str| state.choice(&name("shop"), asked).map(|(_, pool)| pool.balance);
    assert_eq!(balance("green"), Ok(Balance::RoundRobin));
    assert!(matches!(balance("127.0.0.1:83,127.0.0.1:84"), Ok(Balance::Sticky { .. })));
    let many: Vec<_> = (1..=41).map(|port| format!("127.0.0.1:{port}")).collect();
    assert!(
        matches!(balance(&many.join(",")), Err(SwitchError::Unfit(why)) if why.contains("4111"))
    );
}

#[test]
fn hosts_are_found_by_endpoint_alias_and_name() {
    let state = fresh();
    assert_eq!(state.service_by_host("Shop.Example"), Some(&name("shop")));
    assert_eq!(state.service_by_host("127.0.0.1:8001"), Some(&name("web")));
    assert_eq!(state.service_by_host("evil.example"), None);
    assert_eq!(state.only_service(), None);
}

fn stable(state: &State, name: &Name, asked: &str) -> SplitChange {
    SplitChange::Stable(state.choice(name, asked).expect("choice").0)
}

#[test]
fn a_switch_to_nobody_is_refused_unless_forced() {
    let mut state = healthy();
    let shop = name("shop");
    let switch = stable(&state, &shop, "green");
    let to_ask = |state: &State| state.to_ask_before(&shop, &switch).expect("a switch");
    assert_eq!(to_ask(&state), [], "known to be up");
    answer_all(&mut state, &bad());
    let answers: Vec<_> = to_ask(&state).into_iter().map(|(target, _)| (target, bad())).collect();
    assert_eq!(answers.len(), 2);
    let refused = state.change(&shop, &switch, &answers, false, None);
    assert!(matches!(refused, Err(SwitchError::NotHealthy { .. })));
    assert!(state.changes().is_empty());
    // One that answers is enough for a pool.
    let one = [(answers[0].0.clone(), Answer::Good), answers[1].clone()];
    assert!(state.change(&shop, &switch, &one, false, None).is_ok());
    assert!(state.change(&shop, &switch, &answers, true, None).is_ok());
}

#[test]
fn an_override_that_no_longer_fits_is_kept_and_reported() {
    let mut state = healthy();
    let shop = name("shop");
    let switch = stable(&state, &shop, "green");
    assert!(state.change(&shop, &switch, &[], false, None).is_ok());
    let mut spec = state.spec().clone();
    spec.pools.remove(&name("green"));
    state.set_spec(spec);
    let split = state.split(&shop).expect("service");
    assert_eq!((split.stable.choice.to_string().as_str(), split.overridden), ("blue", false));
    assert!(split.problems.iter().any(|problem| problem.contains("green")));
    assert_eq!(state.changes().len(), 1);
}

proptest! {
    /// A switch of one service changes its image alone, and the way back leads to where it began.
    #[test]
    fn a_switch_touches_one_service(pools in proptest::collection::vec(0..4_usize, 1..20)) {
        let mut state = healthy();
        let shop = name("shop");
        let start = compile(&state, &Image::new());
        let mut installed = start.clone();
        for pool in pools {
            let asked = ["blue", "green", "127.0.0.1:83", "127.0.0.1:84,127.0.0.1:83"][pool];
            let switch = stable(&state, &shop, asked);
            let to_ask = state.to_ask_before(&shop, &switch).expect("a switch");
            let answers: Vec<_> = to_ask.into_iter().map(|(t, _)| (t, Answer::Good)).collect();
            state.change(&shop, &switch, &answers, false, None).expect("switch");
            let wanted = compile(&state, &installed);
            prop_assert!(diff(&installed, &wanted).len() <= 1);
            prop_assert!(diff(&wanted, &compile(&state, &wanted)).is_empty());
            installed = wanted;
        }
        let switch = stable(&state, &shop, "blue");
        state.change(&shop, &switch, &[], false, None).expect("switch");
        prop_assert_eq!(compile(&state, &installed), start);
    }

    /// Whatever is answered, a slot never leads to a backend that is not up, unless nobody is.
    #[test]
    fn only_trusted_backends_take_flows(answers in proptest::collection::vec((0..4_usize, any::<bool>()), 0..60)) {
        let mut state = fresh();
        let targets: Vec<_> = state.targets().into_keys().collect();
        let mut installed = Image::new();
        for (target, good) in answers {
            let _change = state.observe(&targets[target], &if good { Answer::Good } else { bad() });
            installed = compile(&state, &installed);
            for image in installed.values() {
                let up = |address| state.health_of("blue", address) == HealthState::Up;
                let anybody = ["127.0.0.1:81", "127.0.0.1:82"].iter().any(|a| up(a.parse().expect("address")));
                prop_assert!(!anybody || image.stable.backends.iter().all(|b| up(b.address)));
            }
        }
    }
}
