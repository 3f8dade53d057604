//! The `graylb` command.
fn main() {}
