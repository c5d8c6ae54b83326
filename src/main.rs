use clap::Parser;
use std::process::ExitCode;
use uncouple::cli::{self, Cli};
use uncouple::device::cpu;
use uncouple::report::progress::say;

fn main() -> ExitCode {
    cpu::keep_freed_memory();
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // One line: what went wrong, then its causes.
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
