//! TC by clsact, as kernels before Linux 6.6 need it: traffic outlives the agent, a restart replaces the
//! programs in place, and unload takes them away.

use std::net::SocketAddr;

use graylb_agent::{
    apply::{DataPlane, Effort, Options, unload},
    compile::{compile, diff},
    config::Config,
    model::{interfaces::plan, state::State},
    netlink::Watcher,
};
use graylb_tests::{
    backend::HttpBackend,
    client,
    load::Load,
    namespace::Namespace,
    sandbox::Sandbox,
    topology::{Family, Routed},
};

fn filters(namespace: &Namespace, device: &str) -> String {
    let show = |direction: &str| {
        let output =
            namespace.command("tc").args(["filter", "show", "dev", device, direction]).output();
        String::from_utf8(output.expect("run tc").stdout).expect("text")
    };
    show("ingress") + &show("egress")
}

/// Opens the data plane in this thread's namespace and puts the config in force.
fn start(sandbox: &Sandbox, config: &Config) -> DataPlane {
    let mut plane = DataPlane::open(&Options {
        pin_dir: sandbox.pin_dir(),
        flows: config.flows.clone(),
        limits: config.limits.clone(),
        kernel_log: false,
        clsact: true,
    })
    .expect("open the data plane");
    let state = State::new(
        config.spec.clone(),
        Default::default(),
        Default::default(),
        &Default::default(),
    );
    for change in diff(plane.installed(), &compile(&state, plane.installed())) {
        let _generation = plane.apply(&change).expect("apply");
    }
    attach(&mut plane, config);
    plane
}

fn attach(plane: &mut DataPlane, config: &Config) {
    let devices = Watcher::open().expect("netlink").devices();
    let wanted = plan(&config.interfaces, &devices).wanted;
    let attached = plane.attach(&wanted, Effort::Everything);
    assert!(attached.refused.is_empty(), "{attached:?}");
    assert!(attached.attachments.iter().all(|a| a.reason.contains("clsact")), "{attached:?}");
}

#[test]
fn clsact_serves_restarts_and_goes() {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    let graylb = &network.graylb;
    let endpoint = SocketAddr::new(Routed::virtual_address(Family::V4), 80);
    let backend = Routed::backend_address(Family::V4, 0, 8080);
    let _backend = HttpBackend::start(&network.backends[0], backend, "one");
    let text = format!(
        "[interfaces.\"g?\"]\n[flows]\ntcp = 65536\nhalf_open = 16384\nudp = 16384\n\
         [services.web]\naddress = \"{endpoint}\"\ndefault_pool = \"web\"\n\
         [pools.web]\nbackends = [\"{backend}\"]\n"
    );
    let (config, _) = Config::parse(&text, "test").expect("a config");
    let ask = || network.client.run(|| client::ask(endpoint));

    graylb.run(|| drop(start(&sandbox, &config)));
    for device in Routed::INTERFACES {
        let filters = filters(graylb, device);
        for words in ["pref 10", "graylb_tc_in", "graylb_tc_out", "direct-action"] {
            assert!(filters.contains(words), "{device}: {filters}");
        }
    }
    assert_eq!(ask().expect("an answer without an agent").backend, "one");

    let (long, short) =
        (Load::long(&network.client, endpoint, 2), Load::short(&network.client, endpoint, 2));
    for _ in 0..10 {
        long.wait_rounds(20);
        short.wait_rounds(20);
        graylb.run(|| drop(start(&sandbox, &config)));
    }
    let (long, short) = (long.finish(), short.finish());
    eprintln!("ten restarts: open connections {long}\n  new connections {short}");
    long.assert_clean();
    short.assert_clean();
    assert_eq!(filters(graylb, "gc").matches("handle").count(), 2, "{}", filters(graylb, "gc"));

    // An interface that is not wanted any more, one under another name, and one that is gone.
    graylb.run(|| {
        let mut plane = start(&sandbox, &config);
        let fewer = Config::parse(&text.replace("g?", "g1"), "test");
        attach(&mut plane, &fewer.expect("a config").0);
        assert_eq!(filters(graylb, "gc"), "");
        assert!(filters(graylb, "g1").contains("graylb_tc_in"));
        attach(&mut plane, &config);
    });
    // Down for it: before Linux 6.2 an interface that is up keeps its name.
    graylb.ip("link set dev g2 down");
    graylb.ip("link set dev g2 name other");
    graylb.ip("link set dev other up");
    network.backends[1].ip("link delete uplink");
    let removed = graylb.run(|| unload(&sandbox.pin_dir()).expect("unload"));
    assert!(removed.iter().any(|line| line == "detached clsact_tc_in:gc"), "{removed:?}");
    assert_eq!(filters(graylb, "gc") + &filters(graylb, "g1"), "");
    assert!(!sandbox.pin_dir().exists());
    ask().expect_err("nobody balances any more");
}
