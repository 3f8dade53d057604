//! The only part that talks to BPF: loads, attaches, pins, and writes what [`crate::compile`] decided.
//!
//! In: options, interfaces, changes. Out: programs at work, counters. It decides nothing about traffic,
//! and it is never on the packet path: dropping [`DataPlane`] leaves everything pinned and at work.

mod addresses;
mod attach;
mod backends;
mod batch;
mod cgroup;
mod clsact;
mod error;
mod flow_report;
mod hooks;
mod layout;
mod links;
mod numbers;
mod pins;
mod reconcile;
mod regions;
mod routes;
mod rules;
mod services;
mod socket_hook;
mod sources;
mod sweep;
mod sys;
mod tables;
mod watch;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use aya::{Ebpf, EbpfLoader, VerifierLogLevel, programs::ProgramError, util::KernelVersion};
use aya_log::EbpfLogger;
use graylb_common::{
    backend::BackendCounters,
    maps::{self, GLOBAL_CSUM_IPV6_FLAG, GLOBAL_FOLLOW_FRAGMENTS},
    verdict::{ServiceDrops, VerdictCounters},
};

use self::{attach::Attacher, pins::Pins, socket_hook::SocketMaps, tables::Tables};
pub use self::{
    attach::{Attached, Attachment, Effort},
    backends::BackendTotals,
    error::ApplyError,
    flow_report::{BackendFlows, FlowReport, TableFill},
    pins::{UnloadReport, unload},
    socket_hook::SocketHook,
    sweep::Sweeper,
    watch::{FlowWatch, kernel_clock_ns},
};
use crate::{
    compile::{Change, Image},
    config::{AddressesConfig, FlowsConfig, LimitsConfig, SocketHookConfig, map_sizes},
    model::{interfaces::Wanted, spec::Endpoint},
};

/// The eBPF object, built by this crate's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/graylb-ebpf"));

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (include/uapi/linux/bpf.h, since Linux 6.16): the pseudo-header is
/// IPv6's, whose addresses no network header checksum balances.
const BPF_F_IPV6: u64 = 1 << 7;

/// How the data plane is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/sys/fs/bpf/graylb` or another directory on a BPF file system.
    pub pin_dir: PathBuf,
    /// Sizes of the flow tables.
    pub flows: FlowsConfig,
    /// Sizes of the other tables.
    pub limits: LimitsConfig,
    /// Log diagnostic events.
    pub kernel_log: bool,
    /// Attach TC programs by clsact, as before Linux 6.6, also where there is TCX. Not in the config: it
    /// is there so that what old kernels need can be run on new ones.
    pub clsact: bool,
}

/// The loaded data plane. Dropping it leaves programs, maps and links pinned and at work.
pub struct DataPlane {
    ebpf: Ebpf,
    pins: Pins,
    attacher: Attacher,
    tables: Tables,
    socket_maps: SocketMaps,
    notes: Vec<String>,
}

impl DataPlane {
    /// Loads the programs, over the maps pinned by an earlier agent if there are any, and takes the lock
    /// that keeps a second agent away. Nothing is attached yet, and links of the earlier agent keep their
    /// programs until [`DataPlane::attach`].
    ///
    /// # Errors
    ///
    /// No BPF file system; another agent runs on the pins; pins of another ABI version or layout; the
    /// kernel refuses a map or program.
    pub fn open(options: &Options) -> Result<Self, ApplyError> {
        let pins = Pins::open(&options.pin_dir)?;
        let mut notes = pins.check_maps(&map_sizes(&options.flows, &options.limits))?;
        let loaded = load(&pins, options, Fragments::Followed).or_else(|error| {
            // Old verifiers (6.1) do not get through that part.
            let ebpf = load(&pins, options, Fragments::Left)?;
            notes.push(format!("this kernel takes the programs only without what follows fragments: later fragments of a datagram are left to the host ({})", first_line(&error)));
            Ok(ebpf)
        });
        let mut ebpf = match loaded {
            Ok(ebpf) => ebpf,
            Err(error) => {
                pins.abandon_if_fresh();
                return Err(error);
            }
        };
        let mut tables = Tables::take(&mut ebpf)?;
        notes.append(&mut tables.reconcile()?);
        tables.set_udp_timeout(options.flows.udp_timeout)?;
        tables.forget_next_hops()?;
        let socket_maps = SocketMaps::take(&mut ebpf)?;
        let attacher = Attacher::new(options.clsact || clsact::needed());
        Ok(Self { ebpf, pins, attacher, tables, socket_maps, notes })
    }

    /// What was found and repaired or kept on opening, a line each, for the log.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The reader of the programs' log records, once; they exist if `kernel_log` was set.
    ///
    /// # Errors
    ///
    /// The ring buffer cannot be mapped.
    pub fn take_logger(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>, ApplyError> {
        EbpfLogger::init(&mut self.ebpf)
            .map_err(|error| ApplyError::new("cannot read the programs' log", error))
    }

    /// Attaches to exactly these devices: takes over pinned links in place, adds missing ones, and
    /// detaches from everything else, also from a device of the same name that is another one. What is
    /// attached already is left alone, so that this may be called at every change.
    pub fn attach(&mut self, wanted: &[Wanted], effort: Effort) -> Attached {
        self.attacher.attach(&mut self.ebpf, &self.pins, wanted, effort)
    }

    /// Attaches the socket hook as configured, in place of an earlier agent's, or detaches it. Returns
    /// where it is attached.
    ///
    /// # Errors
    ///
    /// No cgroup2 file system; the kernel refuses a program or a link. A hook that was attached still is.
    pub fn attach_socket_hook(
        &mut self,
        config: &SocketHookConfig,
    ) -> Result<Option<SocketHook>, ApplyError> {
        let Self { ebpf, pins, tables, socket_maps, .. } = self;
        socket_hook::attach(ebpf, pins, socket_maps, tables, config)
    }

    /// What the kernel holds.
    #[must_use]
    pub fn installed(&self) -> &Image {
        self.tables.installed()
    }

    /// The generation of a service in the kernel.
    #[must_use]
    pub fn generation(&self, endpoint: &Endpoint) -> Option<u64> {
        self.tables.generation(endpoint)
    }

    /// Puts one change in force and returns the service's new generation (0 for a removal). On an error
    /// what was in force still is.
    ///
    /// # Errors
    ///
    /// A table is full, or the kernel refuses a write.
    pub fn apply(&mut self, change: &Change) -> Result<u64, ApplyError> {
        self.tables.apply(change)
    }

    /// When a service's canary loses its share by itself, by [`kernel_clock_ns`]; 0: never.
    #[must_use]
    pub fn lease(&self, endpoint: &Endpoint) -> u64 {
        self.tables.lease(endpoint)
    }

    /// Sets that, now and for the generations that follow; they do not count as another one.
    ///
    /// # Errors
    ///
    /// The kernel refuses the write.
    pub fn set_lease(&mut self, endpoint: Endpoint, lease_ns: u64) -> Result<(), ApplyError> {
        self.tables.set_lease(endpoint, lease_ns)
    }

    /// A UDP flow without a packet for this long chooses its backend anew from now on.
    ///
    /// # Errors
    ///
    /// The kernel refuses the write.
    pub fn set_udp_timeout(&mut self, timeout: Duration) -> Result<(), ApplyError> {
        self.tables.set_udp_timeout(timeout)
    }

    /// What becomes of packets to virtual addresses that are none of their services'.
    ///
    /// # Errors
    ///
    /// The kernel refuses the write.
    pub fn set_addresses(&mut self, config: &AddressesConfig) -> Result<(), ApplyError> {
        self.tables.set_addresses(config)
    }

    /// Makes the programs ask the routing tables again for each flow.
    ///
    /// # Errors
    ///
    /// The kernel refuses the write.
    pub fn forget_next_hops(&mut self) -> Result<(), ApplyError> {
        self.tables.forget_next_hops()
    }

    /// Packets by verdict, all CPUs together.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn verdicts(&self) -> Result<VerdictCounters, ApplyError> {
        self.tables.verdicts()
    }

    /// Packets of each service in force that did not go on their way, by endpoint.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn service_drops(&self) -> Result<BTreeMap<Endpoint, ServiceDrops>, ApplyError> {
        self.tables.service_drops()
    }

    /// Every backend's counters, by the index that [`DataPlane::backend_indices`] says.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Vec<BackendTotals>, ApplyError> {
        self.tables.counters()
    }

    /// Counters of a service's backends, for each pool number and backend address that was in force
    /// since the maps were made.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn backend_counters(
        &self,
        endpoint: &Endpoint,
    ) -> Result<Vec<(u32, SocketAddr, BackendCounters)>, ApplyError> {
        self.tables.backend_counters(endpoint)
    }

    /// What looks the flow tables over, by its own handles: it may go to another thread.
    ///
    /// # Errors
    ///
    /// The pinned maps cannot be opened.
    pub fn sweeper(&self) -> Result<Sweeper, ApplyError> {
        Sweeper::open(&self.pins.maps(), self.tables.backends_end())
    }

    /// A service's backends of every pool that was in force since the maps were made, by pool number and
    /// address, with their indices.
    pub fn backend_indices(
        &self,
        endpoint: &Endpoint,
    ) -> impl Iterator<Item = (u32, SocketAddr, u32)> {
        self.tables.backend_indices(endpoint)
    }

    /// Gives up a start that failed: if this process made the pins, they go again; what an earlier agent
    /// left stays at work.
    pub fn abandon(&self) {
        self.pins.abandon_if_fresh();
    }
}

/// CPUs that may ever be there: per-CPU maps hold a value for each. 1 where the system does not say.
#[must_use]
pub fn possible_cpus() -> usize {
    aya::util::nr_cpus().unwrap_or(1)
}

/// What becomes of fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fragments {
    /// Later ones follow the first.
    Followed,
    /// All of them are left to the host.
    Left,
}

fn first_line(error: &ApplyError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Loads maps and programs, and pins the programs; the links are [`attach`]'s.
fn load(pins: &Pins, options: &Options, fragments: Fragments) -> Result<Ebpf, ApplyError> {
    let follow = u32::from(fragments == Fragments::Followed);
    let csum_flag = match KernelVersion::current() {
        Ok(version) if version >= KernelVersion::new(6, 16, 0) => BPF_F_IPV6,
        Ok(_) | Err(_) => 0,
    };
    let log_level: u8 = if options.kernel_log { log::Level::Info as u8 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global(GLOBAL_CSUM_IPV6_FLAG, &csum_flag, true)
        .override_global(GLOBAL_FOLLOW_FRAGMENTS, &follow, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true);
    for name in maps::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    for size in map_sizes(&options.flows, &options.limits) {
        loader.map_max_entries(size.name, size.entries);
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|error| ApplyError::new("cannot create graylb's maps in the kernel", error))?;
    for name in maps::PROGRAMS {
        let program = ebpf.program_mut(name).ok_or_else(|| ApplyError::missing_program(name))?;
        load_program(program).map_err(|error| {
            ApplyError::new(format!("the kernel refused the program {name}"), error)
        })?;
    }
    for name in maps::PROGRAMS {
        let program = ebpf.program_mut(name).ok_or_else(|| ApplyError::missing_program(name))?;
        pins.replace_program(program, name)?;
    }
    Ok(ebpf)
}

fn load_program(program: &mut aya::programs::Program) -> Result<(), ProgramError> {
    match program {
        aya::programs::Program::Xdp(xdp) => xdp.load(),
        aya::programs::Program::SchedClassifier(classifier) => classifier.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
