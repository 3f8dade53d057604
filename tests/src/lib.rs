//! What graylb's packet and namespace tests are built from.

pub mod packet;
pub mod sandbox;
