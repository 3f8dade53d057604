//! graylb's own chores.
fn main() {}
