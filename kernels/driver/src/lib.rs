//! A software GPU: `libcuda.so.1` and `libcublasLt.so.13` in one file, for a machine without a GPU. A program that loads it by these
//! names (two links to the built library, their folder on LD_LIBRARY_PATH) runs its own machine code against it; kernels run on the
//! emulator, matrix products on the CPU.
//!
//! It is as strict as CUDA, and stricter where CUDA leaves a mistake to chance:
//! - memory lies between pages that nobody may touch, holds a NaN until it is written, and is never given out again after it was freed;
//! - a stream's commands run as late as they may: at the call that waits for them. A copy from pinned memory reads it then, so what was
//!   overwritten too early is seen, and a copy to it leaves nonsense there until then;
//! - registers, static shared memory, launch bounds and parameters come from the machine code in the fat binary that was loaded;
//! - a call that breaks a rule fails as CUDA's does, and is told on stderr as a *violation*.
//!
//! [`Settings`] says which environment variables choose the chip and inject faults. Time passes here as on any CPU, so nothing that is
//! measured says anything about a GPU: the device's name, "Software GPU", is the sign to print no times.

pub mod api;
pub mod blas;
mod command;
mod driver;
mod event;
mod graph;
mod handles;
mod image;
mod kernel;
mod memory;
mod settings;
mod signal;
pub mod status;
mod stream;
mod tensor_map;
mod trace;

pub use settings::Settings;
