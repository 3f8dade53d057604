//! The socket hook's programs → a cgroup. Its links are pinned and replaced in place like those of
//! interfaces; they are BPF links, of which a cgroup takes any number, so that other agents' hooks and
//! other programs there go on.

use std::{io, path::PathBuf};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{CgroupAttachMode, Program, ProgramError, ProgramFd, links::FdLink},
};
use graylb_common::{
    maps::{self, SOCKET_PROGRAMS},
    socket::SocketSettings,
};
use serde::{Deserialize, Serialize};

use super::{
    ApplyError,
    cgroup::Cgroup,
    pins::Pins,
    sys,
    tables::{Tables, read_error, set, take},
};
use crate::config::SocketHookConfig;

/// Where the socket hook is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketHook {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// One sentence.
    pub reason: String,
}

/// The hook's maps that the agent writes.
pub(super) struct SocketMaps {
    settings: Array<MapData, SocketSettings>,
}

impl SocketMaps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, ApplyError> {
        Ok(Self { settings: take(ebpf, maps::SOCKET_SETTINGS)? })
    }

    /// Tells the programs whose sockets to steer. `anew`: sockets that ended while the hook was not
    /// attached went uncounted, so counting starts again.
    fn write(
        &mut self,
        tables: &mut Tables,
        netns_cookie: u64,
        anew: bool,
    ) -> Result<(), ApplyError> {
        let settings = self.settings.get(&0, 0);
        let mut settings = settings.map_err(|error| read_error(maps::SOCKET_SETTINGS, error))?;
        settings.netns_cookie = netns_cookie;
        if anew {
            settings.epoch = settings.epoch.wrapping_add(1);
            tables.forget_sockets()?;
        }
        set(&mut self.settings, maps::SOCKET_SETTINGS, 0, settings)
    }
}

/// Attaches as configured, or detaches. On an error a hook that was attached still is.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    maps: &mut SocketMaps,
    tables: &mut Tables,
    config: &SocketHookConfig,
) -> Result<Option<SocketHook>, ApplyError> {
    if !config.enabled {
        pins.remove_other_socket_links(&[])?;
        pins.remove_programs(&SOCKET_PROGRAMS);
        tables.forget_sockets()?;
        return Ok(None);
    }
    let cgroup = Cgroup::open(config.cgroup.as_deref())?;
    let cookie = sys::netns_cookie().map_err(|error| {
        ApplyError::new("the socket hook needs the network namespace's cookie (Linux 5.14)", error)
    })?;
    let links = SOCKET_PROGRAMS.map(|name| pins.socket_link(name, cgroup.id));
    for name in SOCKET_PROGRAMS {
        load(ebpf, pins, name)?;
    }
    maps.write(tables, cookie, !pins.has_socket_links()?)?;
    let mut made = Vec::new();
    for (name, path) in SOCKET_PROGRAMS.into_iter().zip(&links) {
        match attach_one(ebpf, name, &cgroup, path) {
            Ok(Attached::Anew) => made.push(path),
            Ok(Attached::InPlace) => {}
            Err(error) => {
                made.into_iter().rev().for_each(|path| pins.remove_socket_link(path));
                return Err(error);
            }
        }
    }
    pins.remove_other_socket_links(&links)?;
    let how = if config.cgroup.is_some() { "configured" } else { "the first cgroup2 mount" };
    let reason = format!(
        "{how}; clients on this host in the agent's network namespace are connected to backends directly"
    );
    Ok(Some(SocketHook { cgroup: cgroup.path, reason }))
}

/// Whether a link was there already.
enum Attached {
    InPlace,
    Anew,
}

fn attach_one(
    ebpf: &mut Ebpf,
    name: &str,
    cgroup: &Cgroup,
    path: &std::path::Path,
) -> Result<Attached, ApplyError> {
    let tried = || {
        format!("cannot attach the socket hook's {name} to the cgroup {}", cgroup.path.display())
    };
    let program = program(ebpf, name)?;
    let fd = program_fd(program).map_err(|error| ApplyError::new(tried(), error))?;
    match sys::update_pinned_link(path, std::os::fd::AsFd::as_fd(fd)) {
        Ok(()) => return Ok(Attached::InPlace),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The cgroup that it was attached to is gone, and another one has its number.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            std::fs::remove_file(path).map_err(|error| ApplyError::new(tried(), error))?;
        }
        Err(error) => return Err(ApplyError::new(tried(), error)),
    }
    let link = link(program, cgroup).map_err(|error| {
        let error = ApplyError::new(tried(), error);
        ApplyError::text(format!(
            "{error}; a program that was attached there or above without BPF_F_ALLOW_MULTI keeps others away (`bpftool cgroup tree`)"
        ))
    })?;
    link.pin(path).map_err(|error| {
        ApplyError::new(format!("cannot pin the link at {}", path.display()), error)
    })?;
    Ok(Attached::Anew)
}

/// Loads a program unless that was done, and pins it.
fn load(ebpf: &mut Ebpf, pins: &Pins, name: &str) -> Result<(), ApplyError> {
    let program = program(ebpf, name)?;
    if program_fd(program).is_err() {
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        loaded.map_err(|error| {
            ApplyError::new(format!("the kernel refused the program {name}"), error)
        })?;
    }
    pins.replace_program(program, name)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ApplyError> {
    ebpf.program_mut(name).ok_or_else(|| ApplyError::missing_program(name))
}

fn program_fd(program: &Program) -> Result<&ProgramFd, ProgramError> {
    program.fd()
}

/// A new link. A BPF link takes no flag for it: the kernel always lets it share the cgroup.
fn link(program: &mut Program, cgroup: &Cgroup) -> Result<FdLink, ProgramError> {
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    let link = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(&cgroup.directory, MODE)?;
            program.take_link(id)?.try_into()
        }
        Program::CgroupSock(program) => {
            let id = program.attach(&cgroup.directory, MODE)?;
            program.take_link(id)?.try_into()
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    link.map_err(|_before_linux_5_7| ProgramError::NotAttached)
}
