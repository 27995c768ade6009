//! The executable: see `app::cli` for its commands, and `app::service` for what `serve` does.
use std::process::ExitCode;

fn main() -> ExitCode {
    app::cli::run()
}
