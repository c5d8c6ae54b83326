//! What a stream does, one after the other.

use crate::blas::Product;
use crate::driver::Gpu;
use crate::kernel::Launch;
use crate::status::{LAUNCH_FAILED, Status};
use std::time::Instant;

#[derive(Debug, Clone)]
pub enum Command {
    Launch(Launch),
    Product(Box<Product>),
    Set { to: usize, byte: u8, bytes: usize },
    Upload { from: usize, to: usize, bytes: usize },
    Download { from: usize, to: usize, bytes: usize },
    Copy { from: usize, to: usize, bytes: usize },
    Record { event: usize, turn: u64 },
}

impl Command {
    /// The pinned memory that it will read or write.
    pub fn pinned(&self) -> Option<(usize, usize)> {
        match self {
            Command::Upload { from: at, bytes, .. } | Command::Download { to: at, bytes, .. } => Some((*at, *bytes)),
            _ => None,
        }
    }
}

impl Gpu {
    /// Runs a command: its addresses were checked when it was submitted, and are checked again, since memory may be gone by now.
    pub fn perform(&mut self, command: &Command) -> Result<(), Status> {
        let lost = match *command {
            Command::Set { to, bytes, .. } => !self.memory.is_device(to, bytes),
            Command::Upload { from, to, bytes } => {
                !self.memory.is_pinned(from, bytes) || !self.memory.is_device(to, bytes)
            }
            Command::Download { from, to, bytes } => {
                !self.memory.is_device(from, bytes) || !self.memory.is_pinned(to, bytes)
            }
            Command::Copy { from, to, bytes } => {
                !self.memory.is_device(from, bytes) || !self.memory.is_device(to, bytes)
            }
            _ => false,
        };
        if lost {
            return self.refuse(LAUNCH_FAILED, format!("{command:?} ran after its memory was freed"));
        }
        // SAFETY: allocations hold these ranges.
        unsafe {
            match *command {
                Command::Launch(ref launch) => return self.run_kernel(launch),
                Command::Product(ref product) => return self.run_product(product),
                Command::Set { to, byte, bytes } => (to as *mut u8).write_bytes(byte, bytes),
                Command::Upload { from, to, bytes }
                | Command::Download { from, to, bytes }
                | Command::Copy { from, to, bytes } => std::ptr::copy(from as *const u8, to as *mut u8, bytes),
                Command::Record { event, turn } => {
                    if let Ok(event) = self.events.get_mut(event) {
                        event.done = Some((turn, Instant::now()));
                    }
                }
            }
        }
        Ok(())
    }
}
