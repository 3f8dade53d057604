//! Pure: desired state → slots → map image → changes. Knows no clock, no map, no network.

mod diff;
mod service;
mod service_image;
mod slots;

pub use diff::{Change, diff};
pub(crate) use service::image;
pub use service::{compile, compile_service};
pub use service_image::{BackendImage, Image, ServiceImage, pool_number};
pub use slots::round_robin;
