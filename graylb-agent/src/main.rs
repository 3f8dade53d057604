//! The `graylb` command.

fn main() -> std::process::ExitCode {
    graylb_agent::cli::main()
}
