//! Writes a commitlog with SpacetimeDB's own crate, as commands on its input say.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    logmirror_spacetimedb_tests::serve(&arguments)
}
