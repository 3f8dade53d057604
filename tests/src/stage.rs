//! The usual scene of the control tests: one host, one service, two pools of two backends, one agent.

use std::net::SocketAddr;

use crate::{
    agent::Installation, backend::HttpBackend, client, namespace::Namespace, sandbox::Sandbox,
    topology,
};

/// The service `demo`, also known as `shop.example`, on 127.0.0.1:8000; its pools `default_upstream`
/// (backends that call themselves 81 and 82) and `lua_upstream` (83 and 84).
#[derive(Debug)]
pub struct Stage {
    /// 81 to 84, in this order, all started.
    pub backends: Vec<HttpBackend>,
    /// The agent's.
    pub installation: Installation,
    /// Where everything is.
    pub host: Namespace,
    /// What cleans up; last, after everything else is stopped.
    pub sandbox: Sandbox,
}

impl Stage {
    /// Sets it up, with the pools' `probe` option or none.
    #[must_use]
    pub fn new(probe: Option<&str>) -> Self {
        let sandbox = Sandbox::new();
        let host = topology::host(&sandbox);
        let backend = |number: u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], 18000 + number));
            HttpBackend::start(&host, address, &number.to_string())
        };
        Self {
            backends: (81..=84).map(backend).collect(),
            installation: Installation::new(&sandbox, &host, &Self::config(probe)),
            host,
            sandbox,
        }
    }

    /// The virtual endpoint.
    #[must_use]
    pub fn endpoint() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 8000))
    }

    /// The config, but for the paths.
    #[must_use]
    pub fn config(probe: Option<&str>) -> String {
        let probe = probe.map(|probe| format!("probe = {probe}")).unwrap_or_default();
        format!(
            r#"
[interfaces.lo]
[services.demo]
address = "127.0.0.1:8000"
aliases = ["shop.example"]
default_pool = "default_upstream"
[pools.default_upstream]
backends = ["127.0.0.1:18081", "127.0.0.1:18082"]
{probe}
[pools.lua_upstream]
backends = ["127.0.0.1:18083", "127.0.0.1:18084"]
{probe}
"#
        )
    }

    /// `count` requests to the endpoint, one after another: who answered.
    ///
    /// # Panics
    ///
    /// One fails.
    #[must_use]
    pub fn turns(&self, count: usize) -> Vec<String> {
        client::turns(&self.host, Self::endpoint(), count)
    }
}
