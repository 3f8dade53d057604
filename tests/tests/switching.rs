//! A thousand switches under load: nothing fails, and once a switch is answered, no new connection goes
//! where the switch led away from.

use std::{
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use graylb_tests::{
    agent::Installation,
    backend::HttpBackend,
    client::{self, Connection},
    load::{Load, Tally},
    namespace::Namespace,
    sandbox::Sandbox,
    stage::Stage,
    topology::{Family, Routed},
};

/// A thousand, or as many as `GRAYLB_TEST_SWITCHES` says, for slow machines.
static SWITCHES: LazyLock<u64> = LazyLock::new(|| {
    let told = std::env::var("GRAYLB_TEST_SWITCHES").ok();
    told.map_or(1000, |number| number.parse().expect("a number of switches"))
});

/// Where the switches have got to: number n leads to pool n % 2.
#[derive(Default)]
struct Course {
    asked: AtomicU64,
    answered: AtomicU64,
}

/// Two pools by name, and the names of their backends.
type Pools = [(&'static str, &'static [&'static str]); 2];

/// Short requests that are checked against the course: one that began after switch n was answered, and
/// ended before the next was asked for, was answered by the pool of switch n.
fn judged_load(
    client: &Namespace,
    endpoint: SocketAddr,
    pools: Pools,
    course: &Arc<Course>,
) -> Load {
    let course = Arc::clone(course);
    Load::start(client, 2, move || {
        let course = Arc::clone(&course);
        move |tally: &mut Tally| {
            let started = Instant::now();
            let before = course.answered.load(Ordering::SeqCst);
            let result = client::ask(endpoint);
            let after = course.asked.load(Ordering::SeqCst);
            if let Ok(reply) = &result
                && before == after
                && !pools[before as usize % 2].1.contains(&reply.backend.as_str())
            {
                tally.fail(format!("stale: {} after switch {before}", reply.backend));
            }
            tally.count(&result, started.elapsed());
        }
    })
}

fn check_switches(
    client: &Namespace,
    endpoint: SocketAddr,
    installation: &Installation,
    pools: Pools,
) {
    let _agent = installation.start();
    let course = Arc::new(Course::default());
    let short = judged_load(client, endpoint, pools, &course);
    let long = Load::long(client, endpoint, 1);
    short.wait_rounds(20);
    long.wait_rounds(20);
    let mut api = installation.api();
    let started = Instant::now();
    client.run(|| {
        let mut old = Connection::open(endpoint).expect("connect");
        let home = old.ask().expect("an answer").backend;
        assert!(pools[0].1.contains(&home.as_str()));
        for number in 1..=*SWITCHES {
            let (pool, backends) = pools[number as usize % 2];
            course.asked.store(number, Ordering::SeqCst);
            api.switch("demo", pool);
            course.answered.store(number, Ordering::SeqCst);
            let first = client::ask(endpoint).unwrap_or_else(|e| panic!("switch {number}: {e}"));
            assert!(
                backends.contains(&first.backend.as_str()),
                "stale: {} after switch {number} to {pool}",
                first.backend
            );
            if number % 50 == 0 {
                let reply = old.ask().unwrap_or_else(|e| panic!("old connection: {e}"));
                assert_eq!(reply.backend, home, "an established connection stays");
            }
        }
    });
    let took = started.elapsed();
    let (short, long) = (short.finish(), long.finish());
    println!("{} switches in {took:.1?}; short: {short}; long: {long}", *SWITCHES);
    short.assert_clean();
    long.assert_clean();
}

#[test]
fn a_thousand_switches_on_loopback() {
    let stage = Stage::new(None);
    let pools: Pools = [("default_upstream", &["81", "82"]), ("lua_upstream", &["83", "84"])];
    check_switches(&stage.host, Stage::endpoint(), &stage.installation, pools);
}

#[test]
fn a_thousand_switches_between_namespaces() {
    let sandbox = Sandbox::new();
    let network = Routed::new(&sandbox);
    let endpoint = SocketAddr::new(Routed::virtual_address(Family::V4), 80);
    let [blue, green] = [0, 1].map(|number| Routed::backend_address(Family::V4, number, 8080));
    let _backends = [
        HttpBackend::start(&network.backends[0], blue, "blue1"),
        HttpBackend::start(&network.backends[1], green, "green1"),
    ];
    let interfaces = Routed::INTERFACES.map(|name| format!("[interfaces.{name}]\n")).concat();
    let config = format!(
        "{interfaces}[services.demo]\naddress = \"{endpoint}\"\ndefault_pool = \"blue\"\n\
         [pools.blue]\nbackends = [\"{blue}\"]\n[pools.green]\nbackends = [\"{green}\"]\n"
    );
    let installation = Installation::new(&sandbox, &network.graylb, &config);
    let pools: Pools = [("blue", &["blue1"]), ("green", &["green1"])];
    check_switches(&network.client, endpoint, &installation, pools);
}
