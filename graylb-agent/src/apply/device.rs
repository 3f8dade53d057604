//! What kind of device an interface is, asked of the kernel by route netlink.

use std::thread;

use futures_util::TryStreamExt as _;
use rtnetlink::{
    new_connection,
    packet_route::link::{LinkAttribute, LinkFlags, LinkInfo},
};

use super::ApplyError;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Whether it is the loopback interface.
    pub(super) loopback: bool,
    /// The kernel's name for its kind if it is a virtual one: `veth`, `bridge`, `vlan`, ...
    pub(super) kind: Option<String>,
}

/// Looks `name` up in this thread's network namespace.
pub(super) fn describe(name: &str) -> Result<Device, ApplyError> {
    // A thread of its own: the caller may be inside an async runtime. Threads share the namespace.
    thread::scope(|scope| scope.spawn(|| ask(name)).join())
        .unwrap_or_else(|_| Err(ApplyError::text(format!("looking interface {name} up panicked"))))
}

fn ask(name: &str) -> Result<Device, ApplyError> {
    let tried = || format!("cannot look interface {name} up");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| ApplyError::new(tried(), error))?;
    runtime.block_on(async {
        let (connection, handle, _messages) =
            new_connection().map_err(|error| ApplyError::new(tried(), error))?;
        let connection = tokio::spawn(connection);
        let answer = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        connection.abort();
        let link = match answer {
            Ok(Some(link)) => link,
            Ok(None) => return Err(missing(name)),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => {
                return Err(missing(name));
            }
            Err(error) => return Err(ApplyError::new(tried(), error)),
        };
        Ok(Device {
            loopback: link.header.flags.contains(LinkFlags::Loopback),
            kind: kind(&link.attributes),
        })
    })
}

fn missing(name: &str) -> ApplyError {
    ApplyError::text(format!("there is no interface {name}; `ip link` lists those that there are"))
}

fn kind(attributes: &[LinkAttribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        }),
        _ => None,
    })
}
