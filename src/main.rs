//! The `logmirror` command.

mod cli;

/// Bodies arrive in buffers of some 100 KiB, which the system's allocator takes from the kernel and gives back one by one:
/// a page fault for every 4 KiB, a quarter of the time a client spends on a download.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
