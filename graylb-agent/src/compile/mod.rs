//! Pure: desired state → slots → map image → changes. Knows no clock, no map, no network.

mod diff;
mod maglev;
mod selection;
mod service;
mod service_image;
mod slots;

pub use diff::{Change, diff};
pub use maglev::maglev;
pub use selection::{Select, salt, slots, split_salt};
pub use service::{compile, compile_forced, compile_service, pool_image};
pub use service_image::{BackendImage, Image, PoolImage, ServiceImage, SplitImage, pool_number};
pub use slots::round_robin;
