//! How a service's new flows are divided among pools: the stable pool, a canary's share, and client rules. Types
//! that cannot be invalid; no decision about a single flow.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use graylb_common::service::SHARES;
use serde::{Deserialize, Serialize};

use super::{balance::Prefixes, choice::PoolChoice, spec::SpecError};

/// Most client rules of one service.
pub const MAX_RULES: usize = 65_536;
/// Most pools that one service's client rules lead to.
pub const MAX_RULE_POOLS: usize = 64;

/// A part of the clients, in 1/10000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Share(u16);

impl Share {
    /// Nobody.
    pub const NONE: Self = Self(0);
    /// Everybody.
    pub const ALL: Self = Self(SHARES as u16);

    /// So many of 10,000.
    ///
    /// # Errors
    ///
    /// It is more than all.
    pub fn new(of_10000: u16) -> Result<Self, SpecError> {
        if of_10000 <= Self::ALL.0 {
            return Ok(Self(of_10000));
        }
        Err(SpecError(format!("{of_10000}/10000 is more than everybody")))
    }

    /// How many of 10,000.
    #[must_use]
    pub const fn of_10000(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Share {
    /// `5%`, `0.25%`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 100, self.0 % 100);
        match (rest, rest % 10) {
            (0, _) => write!(f, "{whole}%"),
            (_, 0) => write!(f, "{whole}.{}%", rest / 10),
            _ => write!(f, "{whole}.{rest:02}%"),
        }
    }
}

impl FromStr for Share {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || {
            SpecError(format!(
                "{text:?} is no share: write a percentage in steps of 0.01%, as in \"5%\" or \"0.25%\", or so many \"/10000\""
            ))
        };
        let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u16>().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        if let Some(count) = text.strip_suffix("/10000") {
            return Self::new(number(count)?);
        }
        let percent = text.strip_suffix('%').ok_or_else(wrong)?.trim_end();
        let (whole, decimals) = percent.split_once('.').unwrap_or((percent, "0"));
        let hundredths = match decimals.len() {
            1 => number(decimals)? * 10,
            2 => number(decimals)?,
            _ => return Err(wrong()),
        };
        let whole = number(whole)?.checked_mul(100).ok_or_else(wrong)?;
        Self::new(whole.checked_add(hundredths).ok_or_else(wrong)?)
    }
}

impl TryFrom<String> for Share {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        share.to_string()
    }
}

/// A network of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network with so many bits that an address is in.
    #[must_use]
    pub fn covering(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(if address.is_ipv4() { 32 } else { 128 });
        Self { address: masked(address, prefix), prefix }
    }

    /// The network's address; its bits behind the prefix are zero.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits its addresses share.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

/// The address with zeros behind the prefix.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::from((ip.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::from((ip.to_bits() & mask).to_be_bytes())
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = SpecError;

    /// `ADDRESS/BITS`, or an address alone.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = |why: String| SpecError(format!("{text:?} is no network of clients: {why}"));
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address
            .parse()
            .map_err(|_| wrong("write it as in 192.0.2.0/24 or 2001:db8::/32".into()))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match bits {
            None => longest,
            Some(bits) => bits
                .parse::<u8>()
                .ok()
                .filter(|prefix| *prefix <= longest && bits.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| wrong(format!("0 to {longest} bits are allowed")))?,
        };
        let network = masked(address, prefix);
        if network != address {
            return Err(wrong(format!(
                "bits behind the prefix are set; {network}/{prefix} has none"
            )));
        }
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

/// A pool that a share of the clients goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// The pool.
    pub pool: PoolChoice,
    /// Its part.
    pub share: Share,
}

/// Which clients go to which pool, whatever the share; the longest network wins.
pub type Rules = BTreeMap<Cidr, PoolChoice>;

/// Checks what the kernel's tables ask of rules.
///
/// # Errors
///
/// A client is of another IP family than the service; there are too many, or they lead to too many pools.
pub fn check_rules(rules: &Rules, ipv4: bool) -> Result<(), SpecError> {
    if rules.len() > MAX_RULES {
        return Err(SpecError(format!(
            "{} client rules: at most {MAX_RULES} are allowed",
            rules.len()
        )));
    }
    if let Some(client) = rules.keys().find(|client| client.address.is_ipv4() != ipv4) {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        return Err(SpecError(format!("rule for {client}: the service is on an {family} address")));
    }
    let pools: std::collections::BTreeSet<_> = rules.values().map(ToString::to_string).collect();
    if pools.len() > MAX_RULE_POOLS {
        return Err(SpecError(format!(
            "client rules lead to {} pools: at most {MAX_RULE_POOLS} are allowed",
            pools.len()
        )));
    }
    Ok(())
}

/// What a share is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SplitBy {
    /// Clients: all flows of one go to one pool.
    #[default]
    Client,
    /// Flows: each by itself.
    Flow,
}

impl SplitBy {
    /// Their names, as the config takes them.
    pub const NAMES: [&str; 2] = ["client", "flow"];
}

/// How a service's clients are told apart for the share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitSpec {
    /// What the share is of.
    pub by: SplitBy,
    /// Which clients are one.
    pub prefixes: Prefixes,
    /// Chooses who comes first when the share grows; services with the same salt choose alike. The service's
    /// own endpoint where `None`.
    pub salt: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_are_percentages() {
        for (text, of_10000, again) in [
            ("5%", 500, "5%"),
            ("0%", 0, "0%"),
            ("100%", 10_000, "100%"),
            ("0.25%", 25, "0.25%"),
            ("0.2 %", 20, "0.2%"),
            ("12.05%", 1205, "12.05%"),
            ("333/10000", 333, "3.33%"),
        ] {
            let share: Share = text.parse().expect(text);
            assert_eq!((share.of_10000(), share.to_string().as_str()), (of_10000, again));
        }
        for text in
            ["", "5", "%", "101%", "100.01%", "1.234%", "-1%", "+1%", "1.%", "10001/10000", "9999%"]
        {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_checked() {
        let cidr = |text: &str| text.parse::<Cidr>();
        assert_eq!(cidr("192.0.2.7").expect("an address").to_string(), "192.0.2.7/32");
        assert_eq!(cidr("0.0.0.0/0").expect("everybody").prefix(), 0);
        assert!(cidr("::/0").expect("everybody").contains("2001:db8::1".parse().expect("address")));
        for (text, why) in [
            ("192.0.2.7/24", "192.0.2.0/24 has none"),
            ("192.0.2.0/33", "0 to 32 bits"),
            ("192.0.2.0/+8", "0 to 32 bits"),
            ("2001:db8::/129", "0 to 128 bits"),
            ("shop.example/24", "as in 192.0.2.0/24"),
        ] {
            let error = cidr(text).expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn shares_and_networks_read_back(of_10000 in 0..=10_000_u16, bits in any::<u128>(), prefix in 0..=128_u8) {
            let share = Share::new(of_10000).expect("a share");
            prop_assert_eq!(share.to_string().parse::<Share>(), Ok(share));
            let address = IpAddr::from(bits.to_be_bytes());
            let cidr = Cidr { address: masked(address, prefix), prefix };
            prop_assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(cidr));
            prop_assert!(cidr.contains(address));
        }
    }
}
