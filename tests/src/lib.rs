//! What graylb's packet and namespace tests are built from.

pub mod flow_lab;
pub mod sandbox;
