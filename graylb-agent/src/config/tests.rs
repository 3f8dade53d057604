//! Configs that are read, and every way in which one is refused.

use proptest::prelude::*;

use super::*;
use crate::model::{
    balance::{Balance, Prefixes, TableSize},
    probe::ProbeKind,
    spec::Name,
};

const GOOD: &str = r#"
[interfaces.lo]
[services.shop]
address = "127.0.0.1:8000"
aliases = ["Shop.example"]
default_pool = "blue"
[pools.blue]
backends = ["127.0.0.1:18081", { address = "127.0.0.1:18082", weight = 3 }]
probe = { type = "http", path = "/healthz", status = ["200-299", 304], interval = "2s" }
"#;

fn errors(text: &str) -> String {
    Config::parse(text, "graylb.toml").expect_err("a mistake").to_string()
}

#[test]
fn a_good_config_is_read_with_defaults() {
    let (config, warnings) = Config::parse(GOOD, "graylb.toml").expect("good");
    assert_eq!(warnings, []);
    assert_eq!(config.api, ApiConfig::default());
    let pool = &config.spec.pools[&Name::new("blue").expect("name")];
    assert_eq!(pool.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [1, 3]);
    let probe = pool.probe.as_ref().expect("probe");
    assert_eq!((probe.rise, probe.fall, probe.timeout), (2, 3, Duration::from_millis(500)));
    let ProbeKind::Http(http) = &probe.kind else { panic!("http") };
    assert_eq!(
        (http.path.as_str(), http.statuses.as_slice()),
        ("/healthz", &[(200, 299), (304, 304)][..])
    );
    assert_eq!(config.spec.services[&Name::new("shop").expect("name")].aliases, ["shop.example"]);
}

#[test]
fn every_mistake_is_reported_at_once() {
    insta::assert_snapshot!(errors(
        r#"
[agent]
pin_dir = "relative"
statefile = "/x"
log = 3
[api]
listen = "0.0.0.0:80"
[flows]
tcp = 12
udp_timeout = "1 minute"
[addresses]
echo = 1
[interfaces.lo]
attach = "xdp-generic"
[interfaces.a-name-that-is-too-long]
attach = "tcx"
[socket_hook]
enabled = "auto"
cgroup = "system.slice"
[services.shop]
address = "127.0.0.1"
default_pool = "blu"
[services.web]
address = "10.0.0.1:80"
protocol = "sctp"
aliases = ["ok.example", "not ok"]
default_pool = "green"
[services."bad name"]
address = "10.0.0.1:81"
default_pool = "v6"
[services.circle]
address = "10.0.0.5:80"
default_pool = "green"
[services.local]
address = "127.0.0.1:80"
default_pool = "green"
[pools.blue]
backends = ["127.0.0.1:18081", "127.0.0.1:18081"]
probe = { type = "tcp", path = "/", interval = "10ms", timeout = "2s", rise = 0 }
[pools.green]
backends = ["10.0.0.5:80", { address = "10.0.0.6:80", wieght = 2000 }, { address = "10.0.0.7:80", weight = 2000 }]
[pools.ok]
backends = ["10.0.0.5:80"]
[pools.v6]
backends = ["[2001:db8::1]:80"]
probe = { type = "http", path = "x", status = [99, "300-200"] }
[servces]
"#
    ));
}

#[test]
fn relations_are_checked() {
    insta::assert_snapshot!(errors(
        r#"
[interfaces.lo]
[services.a]
address = "127.0.0.1:80"
aliases = ["x.example"]
default_pool = "far"
[services.b]
address = "127.0.0.1:80"
aliases = ["X.example"]
default_pool = "circle"
[services.c]
address = "[::1]:80"
default_pool = "circle"
[services.d]
address = "127.0.0.1:81"
default_pool = "fra"
[pools.far]
backends = ["10.0.0.1:80"]
[pools.circle]
backends = ["127.0.0.1:80"]
"#
    ));
}

#[test]
fn a_balance_is_read_with_defaults() {
    let balance = |options: &str| {
        let text = GOOD.replace("[pools.blue]", &format!("[pools.blue]\n{options}"));
        let (config, _) = Config::parse(&text, "graylb.toml").expect("good");
        config.spec.pools[&Name::new("blue").expect("name")].balance
    };
    let size = |slots| TableSize::new(slots).expect("a prime");
    assert_eq!(balance(""), Balance::RoundRobin);
    assert_eq!(balance("balance = \"maglev\""), Balance::Maglev { size: size(4099) });
    assert_eq!(balance("balance = \"least_connections\""), Balance::LeastConnections);
    let sticky = |size, v4, v6| Balance::Sticky { size, prefixes: Prefixes { v4, v6 } };
    assert_eq!(balance("balance = \"sticky\""), sticky(size(4099), 32, 128));
    assert_eq!(
        balance("balance = \"sticky\"\nsticky_prefix_v6 = 64\nmaglev_size = 1009"),
        sticky(size(1009), 32, 64)
    );
}

#[test]
fn balances_are_checked() {
    let backends = |count| {
        let addresses = (1..=count).map(|n| format!("\"10.0.{}.{}:80\"", n / 250, n % 250 + 1));
        format!("[{}]", addresses.collect::<Vec<_>>().join(", "))
    };
    let text = format!(
        r#"
[interfaces.lo]
[services.a]
address = "10.1.0.1:80"
default_pool = "a"
[pools.a]
balance = "maglv"
backends = ["10.0.0.1:80"]
[pools.b]
balance = 7
backends = ["10.0.0.1:80"]
[pools.c]
sticky_prefix_v4 = 24
maglev_size = 4099
backends = ["10.0.0.1:80"]
[pools.d]
balance = "maglev"
maglev_size = 4096
sticky_prefix_v6 = 64
backends = ["10.0.0.1:80"]
[pools.e]
balance = "sticky"
maglev_size = 100
sticky_prefix_v4 = 33
sticky_prefix_v6 = 0
backends = ["10.0.0.1:80"]
[pools.f]
balance = "least_connections"
sticky_prefix_v4 = 24
backends = ["10.0.0.1:80"]
[pools.g]
balance = "maglev"
backends = {}
[pools.h]
balance = "sticky"
maglev_size = 101
backends = {}
[pools.i]
balance = "maglev"
backends = {}
"#,
        backends(41),
        backends(2),
        backends(656)
    );
    insta::assert_snapshot!(errors(&text));
}

#[test]
fn a_probe_of_each_type_is_read() {
    let probe = |options: &str| {
        let text = format!(
            "[interfaces.lo]\n[services.a]\naddress = \"10.1.0.1:80\"\ndefault_pool = \"a\"\n[pools.a]\nbackends = [\"10.0.0.1:80\", {{ address = \"10.0.0.2:80\", probe_address = \"10.9.0.2:81\" }}]\nprobe = {{ {options} }}\n"
        );
        let (config, warnings) =
            Config::parse(&text, "f").unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(warnings, []);
        config.spec.pools[&Name::new("a").expect("name")].probe.clone().expect("probe")
    };
    insta::assert_debug_snapshot!([
        probe("type = \"tcp\", interval = \"100ms\", port = 99"),
        probe(
            "type = \"http\", method = \"HEAD\", path = \"/a?b=c\", host = \"a.example:81\", headers = { \"X-A\" = \"b\" }, http_version = \"2\", tls = true, tls_name = \"b.example\", tls_ca = \"/etc/ca.pem\""
        ),
        probe("type = \"grpc\", service = \"shop.Cart\", tls = true, tls_verify = false"),
        probe("type = \"udp\", send_hex = \"00 ff\", expect = \"ok\", doubt_interval = \"1s\""),
        probe("type = \"exec\", command = [\"/bin/check\", \"-v\"]"),
    ]);
}

#[test]
fn probes_are_checked() {
    let pools = [
        "type = \"https\"",
        "type = \"htpt\"",
        "type = \"tcp\", tls = true, send = \"x\", service = \"s\"",
        "type = \"http\", method = \"GTE\", path = \"/a b\", host = \"a@b\", http_version = \"3\", body_matches = \"(\"",
        "type = \"http\", method = \"HEAD\", body_matches = \"ok\", headers = { \"a b\" = \"c\", x = \"\\u0000\", Connection = \"close\" }",
        "type = \"http\", tls_name = \"x\", tls_ca = \"ca.pem\"",
        "type = \"grpc\", tls = true, tls_verify = false, tls_ca = \"/ca.pem\", path = \"/\"",
        "type = \"udp\"",
        "type = \"udp\", send = \"\", expect = \"a\", expect_hex = \"0\"",
        "type = \"exec\"",
        "type = \"exec\", command = []",
        "type = \"exec\", command = [\"true\", 7], port = 0",
        "type = \"tcp\", interval = \"100ms\", doubt_interval = \"200ms\"",
    ];
    let mut text = "[interfaces.lo]\n[services.a]\naddress = \"10.1.0.1:80\"\ndefault_pool = \"p0\"\n[pools.none]\nbackends = [{ address = \"10.0.0.1:80\", probe_address = \"10.0.0.1:81\" }]\n".to_owned();
    for (number, probe) in pools.iter().enumerate() {
        text +=
            &format!("[pools.p{number}]\nbackends = [\"10.0.0.1:80\"]\nprobe = {{ {probe} }}\n");
    }
    insta::assert_snapshot!(errors(&text));
}

#[test]
fn services_share_one_table_of_slots() {
    let services = |count: u32| {
        let each = (1..=count).map(|n| {
            format!("[services.s{n}]\naddress = \"10.1.0.{n}:80\"\ndefault_pool = \"p\"\n")
        });
        format!(
            "[interfaces.lo]\n[pools.p]\nbackends = [\"10.0.0.1:80\"]\nbalance = \"maglev\"\nmaglev_size = 65521\n{}",
            each.collect::<String>()
        )
    };
    assert!(Config::parse(&services(4), "f").is_ok());
    assert!(errors(&services(5)).contains("services need 327605 slots"));
}

#[test]
fn syntax_errors_have_a_place() {
    insta::assert_snapshot!(errors("[interfaces.lo]\nattach = \n[services.shop\n"));
}

#[test]
fn warnings_do_not_stop() {
    let text = GOOD.replace("[interfaces.lo]", "[interfaces.eth0]");
    let (_, warnings) = Config::parse(&text, "graylb.toml").expect("good");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].to_string().contains("[interfaces.lo] is missing"), "{}", warnings[0]);
}

#[test]
fn interfaces_may_be_patterns() {
    let text = GOOD.replace(
        "[interfaces.lo]",
        "[interfaces.\"*\"]\nattach = \"tc\"\n[interfaces.\"eth?\"]\n[interfaces.eth0]",
    );
    let (config, warnings) = Config::parse(&text, "graylb.toml").expect("good");
    assert_eq!(warnings, []);
    let mut names: Vec<_> = config.interfaces.iter().map(|i| i.pattern.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["*", "eth0", "eth?"]);
    let tie = text.replace("[interfaces.eth0]", "[interfaces.\"e?h*\"]\n[interfaces.\"e*?h\"]");
    insta::assert_snapshot!(errors(&tie));
}

#[test]
fn the_socket_hook_is_off_unless_wanted() {
    let (config, _) = Config::parse(GOOD, "f").expect("good");
    assert_eq!(config.socket_hook, SocketHookConfig { enabled: false, cgroup: None });
    // With it, nothing needs to be attached to loopback.
    let text = GOOD.replace("[interfaces.lo]", "[interfaces.eth0]")
        + "[socket_hook]\nenabled = true\ncgroup = \"/sys/fs/cgroup/web\"\n";
    let (config, warnings) = Config::parse(&text, "f").expect("good");
    let cgroup = Some("/sys/fs/cgroup/web".into());
    assert_eq!(config.socket_hook, SocketHookConfig { enabled: true, cgroup });
    assert_eq!(warnings, []);
}

#[test]
fn a_missing_file_says_so() {
    let error = Config::load(Path::new("/nonexistent/graylb.toml")).expect_err("missing");
    assert!(error.to_string().contains("/nonexistent/graylb.toml: error: cannot read the config"));
}

#[test]
fn what_needs_a_restart_is_named() {
    let (old, _) = Config::parse(GOOD, "f").expect("good");
    let (new, _) =
        Config::parse(&format!("{GOOD}[flows]\ntcp = 2048\nudp_timeout = \"5s\"\n"), "f")
            .expect("good");
    assert_eq!(new.needs_restart(&old), ["flows.tcp"]);
}

#[test]
fn every_option_is_documented() {
    let docs = include_str!("../../../docs/config.md");
    for (table, options) in OPTIONS {
        assert!(docs.contains(&format!("[{table}]")), "docs/config.md lacks [{table}]");
        for option in *options {
            assert!(
                docs.contains(&format!("| `{option}` |")),
                "docs/config.md lacks `{option}` of [{table}]"
            );
        }
    }
}

#[test]
fn the_examples_load_without_a_finding() {
    let mut seen = 0;
    for entry in fs::read_dir("../examples").expect("examples") {
        let path = entry.expect("entry").path();
        let (_, warnings) = Config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(warnings, [], "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 3, "{seen} examples");
}

proptest! {
    #[test]
    fn damaged_text_is_an_error_or_a_config(
        at in 0..GOOD.len(),
        length in 0..20_usize,
        with in ".{0,12}",
    ) {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + length).min(GOOD.len()), &with);
        if let Err(errors) = Config::parse(&text, "f") {
            prop_assert!(!errors.findings.is_empty());
        }
    }
}
