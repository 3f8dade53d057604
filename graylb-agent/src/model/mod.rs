//! What the operator wants and what the agent knows, as pure data: no I/O, no clock.

pub mod ageing;
pub mod balance;
pub mod changes;
pub mod choice;
pub mod drain;
pub mod health;
pub mod interfaces;
pub mod judge;
pub mod mode;
pub mod probe;
pub mod rollout;
pub mod spec;
pub mod split;
pub mod state;
