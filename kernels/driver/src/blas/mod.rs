//! cuBLASLt: descriptors, plans that are checked, products on the CPU.

pub mod api;
mod plan;
mod product;

pub use plan::{Heuristic, Layout, Operation, Preference, status};
pub use product::Product;

use crate::driver::{Gpu, Needs, call};
use crate::handles::Handles;
use crate::status::Status;

#[derive(Default)]
pub struct Blas {
    pub handles: Handles<()>,
    pub layouts: Handles<Layout>,
    pub operations: Handles<Operation>,
    pub preferences: Handles<Preference>,
}

impl Blas {
    /// What has not been destroyed.
    pub fn objects(&self) -> usize {
        self.handles.len() + self.layouts.len() + self.operations.len() + self.preferences.len()
    }
}

/// A call of a function of cuBLASLt's, whose statuses are its own: the driver's become NOT_INITIALIZED. `body` answers in cuBLASLt's.
fn call_blas(function: &'static str, needs: Needs, body: impl FnOnce(&mut Gpu) -> Result<(), Status>) -> Status {
    let mut answer = None;
    let entered = call(function, needs, |gpu| {
        answer = Some(body(gpu).err().unwrap_or(status::SUCCESS));
        Ok(())
    });
    // A configured failure comes as it is.
    answer.unwrap_or(if needs == Needs::Context && entered > status::LAST { status::NOT_INITIALIZED } else { entered })
}
