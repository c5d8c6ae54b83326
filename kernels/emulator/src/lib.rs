//! Runs the CUDA kernels of `kernels/` on a CPU. The same .cu files, compiled as C++ with a shim in front (`shim.h`), run
//! block by block, the threads of a block as fibers that switch at barriers and warp collectives.
//!
//! It looks for what a GPU lets pass: every launch runs under several schedules, whose results must agree bit for bit (a missing
//! barrier makes them differ); shared memory and fresh buffers hold a poison that is a NaN in bf16 and f32; buffers lie between
//! guard zones; the 16-byte accesses of `common/vec.cuh` must be aligned and inside memory that the launch was given; a barrier or
//! collective that some threads never reach is an error with its line. Of the asynchronous parts of sm_90 (mbarriers, bulk and
//! TMA copies, WGMMA products) it finds waits that never end, bytes that do not add up, registers looked at and operands
//! overwritten before a product was waited for, operands and mbarriers that were not shown, registers that a block does not have. It cannot
//! see spills or speed, nor, without the feature `counters`, bank conflicts; a plain access far outside of every buffer ends the test's process, as on any CPU.
//!
//! ```
//! use kernel_emulator::{Buffer, args, launch};
//! let (x, y) = (Buffer::new(&[1.0f32; 40]), Buffer::poisoned::<f32>(40));
//! launch("planted_copy", 2, 32, 0, args![&x, &y, 40]).unwrap();
//! assert_eq!(y.read::<f32>().unwrap(), [1.0; 40]);
//! ```

mod block;
mod buffer;
mod bulk;
mod calls;
#[cfg(feature = "counters")]
mod counters;
mod fault;
mod fiber;
mod kernel;
mod launch;
mod mbarrier;
mod memory;
#[cfg(feature = "counters")]
mod races;
mod shared;
mod wgmma;

pub use buffer::Buffer;
pub use bulk::{Swizzle, TensorMap, Tiling};
#[cfg(feature = "counters")]
pub use counters::{Counts, counters};
pub use fault::{Fault, Place, Site};
pub use kernel::{Kernel, Parameter, replace};
pub use launch::{Arg, Dim, Schedule, kernels, launch, launch_raw, launch_under, parameters};
