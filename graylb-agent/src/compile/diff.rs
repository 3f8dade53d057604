//! From what the kernel holds to what it is to hold: the changes, none where both agree.

use crate::{
    compile::{Image, ServiceImage},
    model::spec::Endpoint,
};

/// One service's change. Each is put in force by one map write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Put this service's data in force.
    Put(Endpoint, Box<ServiceImage>),
    /// Take the service out.
    Remove(Endpoint),
}

/// What turns `installed` into `wanted`, removals first.
#[must_use]
pub fn diff(installed: &Image, wanted: &Image) -> Vec<Change> {
    let removed = installed.keys().filter(|endpoint| !wanted.contains_key(endpoint));
    let put = wanted.iter().filter(|(endpoint, image)| {
        installed.get(endpoint).is_none_or(|installed| !installed.routes_like(image))
    });
    removed
        .map(|endpoint| Change::Remove(*endpoint))
        .chain(put.map(|(endpoint, image)| Change::Put(*endpoint, Box::new(image.clone()))))
        .collect()
}
