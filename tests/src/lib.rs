//! What graylb's packet and namespace tests are built from.

pub mod agent;
pub mod api;
pub mod backend;
mod binary;
pub mod client;
pub mod decapsulator;
pub mod eventually;
pub mod flow_lab;
pub mod link;
pub mod load;
pub mod namespace;
pub mod packet;
pub mod sandbox;
pub mod services;
pub mod skip;
pub mod stage;
pub mod topology;
pub mod transfer;
