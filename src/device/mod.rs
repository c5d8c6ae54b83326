//! Where numbers live and how work is spread over a device.

mod arena;
pub mod cpu;
pub mod cuda;
mod driver;
mod dtype;
mod error;
mod gpu;
pub mod kernels;
mod packed;

pub use arena::Arena;
pub use driver::{Arg, Chip, Driver, Launch, Matmul, Operand, TensorMap, Tiling};
pub use dtype::Dtype;
pub use error::{Error, Result, cublaslt_version, expect};
pub use gpu::{Gpu, Graph, Real, Slice, SliceUpload, SubSlice, Tensor};
pub use packed::{Packed, PackedIndex, Unpacked};
