//! Errors of calls, and whose they are: a kernel's fault shows up at whatever call comes later, and then at every call.

use crate::device::{Error, Result};
use cudarc::driver::DriverError;

/// An error of the call itself.
pub fn call<T>(what: &'static str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|e| Error::Call { what, problem: problem(e) })
}

/// CUDA's words for an error.
pub fn problem(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("error {}", error.0 as u32))
}

/// What was launched last: the suspect.
#[derive(Default)]
pub struct Launched(Option<Error>);

impl Launched {
    /// An error as the launch or product itself would give it, its problem left out.
    pub fn note(&mut self, suspect: Error) {
        self.0 = Some(suspect);
    }

    /// An error of the call, or of what was launched before it and ran until now.
    pub fn check<T>(&self, what: &'static str, result: Result<T, DriverError>) -> Result<T> {
        result.map_err(|error| self.blame(what, error))
    }

    pub fn blame(&self, what: &'static str, error: DriverError) -> Error {
        let problem = problem(error);
        let found = || {
            format!(
                "{problem} (this or an earlier launch, seen on the attempt to {what}: run again with \
                 CUDA_LAUNCH_BLOCKING=1 to see which)"
            )
        };
        match &self.0 {
            Some(suspect) if is_of_a_kernel(error) => suspect.clone().with_problem(found()),
            _ => Error::Call { what, problem },
        }
    }
}

/// Whether this error comes of what ran on the GPU, and stays. By the numbers of `CUresult`: uncorrectable memory, illegal address,
/// timeout, assertion, and from the hardware's stack to an unspecified launch failure.
pub fn is_of_a_kernel(error: DriverError) -> bool {
    matches!(error.0 as u32, 214 | 700 | 702 | 710 | 714..=719)
}
