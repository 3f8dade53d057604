//! Pure: desired state → slots → map image → changes. Knows no clock, no map, no network.

mod diff;
mod image;
mod slots;

pub use diff::{Change, diff};
pub use image::{BackendImage, Image, ServiceImage, pool_number};
pub use slots::round_robin;
