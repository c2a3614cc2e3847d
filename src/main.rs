//! The `logmirror` command.
fn main() {}
