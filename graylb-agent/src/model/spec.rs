//! The operator's intent: services, pools, backends and probes, as types that cannot be invalid.
//!
//! In: parsed values from the config. Out: values that the rest of the agent takes without checking
//! again. Names and weights are checked by their constructors; relations between services and pools by
//! [`Spec::new`].

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{
    balance::Balance,
    mode::Mode,
    probe::ProbeSpec,
    split::{Canary, Rules, SplitSpec},
};

/// Longest name of a service or pool, in bytes.
pub const MAX_NAME_LEN: usize = 63;
/// Highest weight of a backend.
pub const MAX_WEIGHT: u16 = 1000;
/// Most backends in one pool.
pub const MAX_POOL_BACKENDS: usize = 1024;
/// Most slots that one pool may need: the sum of its weights over their greatest common divisor.
pub const MAX_POOL_SLOTS: u32 = 65_536;

/// Why a value is no name, weight, address or spec. The text says what was found and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

/// The name of a service or pool: 1 to 63 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks `text`.
    pub fn new(text: &str) -> Result<Self, SpecError> {
        let ok = (1..=MAX_NAME_LEN).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(SpecError(format!(
                "{text:?} is no name: 1 to {MAX_NAME_LEN} of A-Z a-z 0-9 . _ -, starting with a letter or digit"
            )))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, SpecError> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(SpecError(format!("{text:?} is no protocol: tcp or udp"))),
        }
    }
}

/// A service's virtual endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address and port; the port is not 0, the address neither unspecified nor multicast.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// A backend of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendSpec {
    /// Address and port, as [`Endpoint::address`].
    pub address: SocketAddr,
    /// Its part of new flows, relative to the pool's other backends: 0 (none) to 1000.
    pub weight: u16,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its backends, in the order of the config; not empty, no address twice, at least one weight > 0.
    pub backends: Vec<BackendSpec>,
    /// How packets get to its backends and back.
    pub mode: Mode,
    /// How its backends are probed; `None`: they are taken to be well.
    pub probe: Option<ProbeSpec>,
    /// How its backends share its new flows; if by a Maglev table, it is large enough for them.
    pub balance: Balance,
}

impl PoolSpec {
    /// Checks what [`PoolSpec`]'s fields promise, and the limits on backends and slots. The backends take
    /// turns; see [`PoolSpec::balanced`].
    ///
    /// # Errors
    ///
    /// A field breaks its promise; the mode's sources are of another family than the backends.
    pub fn new(
        backends: Vec<BackendSpec>,
        mode: Mode,
        probe: Option<ProbeSpec>,
    ) -> Result<Self, SpecError> {
        if backends.is_empty() || backends.len() > MAX_POOL_BACKENDS {
            return Err(SpecError(format!(
                "a pool has 1 to {MAX_POOL_BACKENDS} backends, this one has {}",
                backends.len()
            )));
        }
        for (place, backend) in backends.iter().enumerate() {
            check_address(backend.address)?;
            if backend.weight > MAX_WEIGHT {
                return Err(SpecError(format!(
                    "backend {} has weight {}: 0 to {MAX_WEIGHT} are allowed",
                    backend.address, backend.weight
                )));
            }
            if backends[..place].iter().any(|earlier| earlier.address == backend.address) {
                return Err(SpecError(format!("backend {} is listed twice", backend.address)));
            }
            if backend.address.is_ipv4() != backends[0].address.is_ipv4() {
                return Err(SpecError(format!(
                    "backends {} and {} are of different IP families: a pool has one",
                    backends[0].address, backend.address
                )));
            }
        }
        let divisor = backends.iter().fold(0, |divisor, b| gcd(divisor, u32::from(b.weight)));
        if divisor == 0 {
            return Err(SpecError("every backend has weight 0: at least one must be above".into()));
        }
        let pool = Self { backends, mode, probe, balance: Balance::RoundRobin };
        let slots = pool.slots();
        if slots > MAX_POOL_SLOTS {
            return Err(SpecError(format!(
                "the weights need {slots} slots (their sum over their greatest common divisor), at most {MAX_POOL_SLOTS} are allowed: use rounder weights"
            )));
        }
        if let Some(sources) = pool.mode.sources()
            && sources.addresses[0].is_ipv4() != pool.is_ipv4()
        {
            return Err(SpecError(format!(
                "source address {} and backend {} are of different IP families",
                sources.addresses[0], pool.backends[0].address
            )));
        }
        Ok(pool)
    }

    /// With its flows shared like this.
    ///
    /// # Errors
    ///
    /// The Maglev table is too small for the pool's backends.
    pub fn balanced(self, balance: Balance) -> Result<Self, SpecError> {
        if let Some(size) = balance.table() {
            size.check_backends(self.backends.len())?;
        }
        Ok(Self { balance, ..self })
    }

    /// Slots that the pool needs in the kernel's table when all its backends take flows.
    #[must_use]
    pub fn slots(&self) -> u32 {
        if let Some(size) = self.balance.table() {
            return size.slots();
        }
        let weights = || self.backends.iter().map(|backend| u32::from(backend.weight));
        weights().sum::<u32>() / weights().fold(0, gcd).max(1)
    }

    /// Whether the backends are IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.backends[0].address.is_ipv4()
    }
}

/// The greatest common divisor; `gcd(0, n)` is `n`.
#[must_use]
pub const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Refuses an address that no packet can be sent to: port 0, unspecified, multicast, broadcast,
/// IPv4-mapped IPv6, or with a zone.
pub fn check_address(address: SocketAddr) -> Result<(), SpecError> {
    let refused = |why: &str| Err(SpecError(format!("{address} {why}")));
    if address.port() == 0 {
        return refused("has port 0: 1 to 65535 are allowed");
    }
    match address.ip() {
        ip if ip.is_unspecified() => refused("is the unspecified address: name one address"),
        ip if ip.is_multicast() => refused("is a multicast address: only unicast is balanced"),
        IpAddr::V4(ip) if ip.is_broadcast() => refused("is the broadcast address"),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            refused("is an IPv4-mapped IPv6 address: write the IPv4 address")
        }
        _ => Ok(()),
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its virtual endpoint.
    pub endpoint: Endpoint,
    /// Other names by which the switch API finds it (`shop.example`, `127.0.0.1:8000`), in lower case.
    pub aliases: Vec<String>,
    /// The pool in force unless a switch says otherwise.
    pub default_pool: Name,
    /// The canary unless another was set at run time.
    pub canary: Option<Canary>,
    /// The client rules unless others were set at run time.
    pub rules: Rules,
    /// How clients are told apart for the canary's share.
    pub split: SplitSpec,
}

/// All services and pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// Services by name.
    pub services: BTreeMap<Name, ServiceSpec>,
    /// Pools by name.
    pub pools: BTreeMap<Name, PoolSpec>,
}

/// Whether `service` may send its flows to `pool`.
///
/// # Errors
///
/// They are of different IP families, and the pool's mode does not bridge that; the pool has the service's
/// own address; the mode keeps the port, and a backend has another; or the service is on a loopback
/// address, which only this host reaches, and a backend is not, or the mode needs a network.
pub fn check_use(
    name: &Name,
    service: &ServiceSpec,
    pool_name: &dyn fmt::Display,
    pool: &PoolSpec,
) -> Result<(), SpecError> {
    let address = service.endpoint.address;
    let mode = pool.mode.name();
    if address.ip().is_loopback() && pool.mode != Mode::Nat {
        return Err(SpecError(format!(
            "service {name} is on the loopback address {address}, pool {pool_name} has mode {mode}: on loopback only nat works"
        )));
    }
    for backend in &pool.backends {
        let tunnel = matches!(pool.mode, Mode::Ipip(_));
        if backend.address.is_ipv4() != address.is_ipv4() && !tunnel {
            return Err(SpecError(format!(
                "service {name} is on {address}, pool {pool_name} has {}: both must be of one IP family in mode {mode} (ipip can carry one in the other)",
                backend.address
            )));
        }
        if pool.mode.keeps_destination() && backend.address.port() != address.port() {
            return Err(SpecError(format!(
                "service {name} is on port {}, pool {pool_name} has {}: mode {mode} keeps the port, so both must be the same",
                address.port(),
                backend.address
            )));
        }
        if backend.address == address {
            return Err(SpecError(format!(
                "pool {pool_name} has {address}, which is service {name}'s own address: its flows would go round in a circle"
            )));
        }
        if address.ip().is_loopback() && !backend.address.ip().is_loopback() {
            return Err(SpecError(format!(
                "service {name} is on the loopback address {address}, pool {pool_name} has {}, which is not: packets from a loopback address cannot leave this host",
                backend.address
            )));
        }
    }
    Ok(())
}
