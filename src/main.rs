use clap::Parser;
use std::process::ExitCode;
use uncouple::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // One line: what went wrong, then its causes.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
