//! What a GPU has to offer. The real one (`cuda`) and the one of the tests, which runs the same kernels on a CPU, offer the same.

use super::Dtype;
use super::Result;
use bytemuck::Pod;
use std::time::Duration;

/// Memory and launches, executed in the order of the calls. Addresses are the device's.
///
/// An address that did not come from `alloc`, or that the sizes given with it overrun, is a bug of the caller's that need not be
/// found: [`super::Gpu`] and the ops stand between.
pub trait Driver: Send + Sync {
    /// For people: the GPU's name and size.
    fn describe(&self) -> String;

    /// Bytes that nobody has written, aligned to 256.
    ///
    /// # Errors
    /// If there is too little free memory.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Of these sizes, side by side where the device has copies of its own to save by [`Driver::upload_all`].
    ///
    /// # Errors
    /// If there is too little free memory for all.
    fn alloc_all(&self, bytes: &[usize]) -> Result<Vec<u64>> {
        bytes.iter().map(|bytes| self.alloc(*bytes)).collect()
    }
    /// Frees what `alloc` gave.
    fn free(&self, address: u64);
    /// Bytes that are not allocated.
    fn free_bytes(&self) -> usize;

    /// Sets `bytes` bytes to 0.
    ///
    /// # Errors
    /// If the device refuses the call.
    fn zero(&self, to: u64, bytes: usize) -> Result<()>;
    /// Copies from the host to the device.
    ///
    /// # Errors
    /// If the device refuses the call.
    fn upload(&self, from: &[u8], to: u64) -> Result<()>;
    /// Pieces and where they go: those that were allocated side by side go in one copy.
    ///
    /// # Errors
    /// If the device refuses the call.
    fn upload_all(&self, pieces: &[(&[u8], u64)]) -> Result<()> {
        pieces.iter().try_for_each(|(from, to)| self.upload(from, *to))
    }
    /// Waits for all earlier calls.
    ///
    /// # Errors
    /// If the device refuses the call, or an earlier one failed.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;
    /// Copies within the device.
    ///
    /// # Errors
    /// If the device refuses the call.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// What the device is.
    fn chip(&self) -> Chip;
    /// What the copy engine of a Hopper GPU reads a matrix by.
    ///
    /// # Errors
    /// If the device has no such copy engine, or refuses the tiling.
    fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap>;

    /// Launches a kernel by its name.
    ///
    /// # Errors
    /// If no kernel has this name, it has no image for the device, or the launch is refused.
    fn launch(&self, launch: &Launch) -> Result<()>;
    /// Computes a matrix product.
    ///
    /// # Errors
    /// If the library has no plan for these sizes, or refuses the call.
    fn matmul(&self, product: &Matmul) -> Result<()>;
    /// Waits for all earlier calls; an error may be of any of them.
    ///
    /// # Errors
    /// If an earlier call failed.
    fn synchronize(&self) -> Result<()>;

    /// The time that the device takes for `work`.
    ///
    /// # Errors
    /// If `work` fails, or the device cannot be timed.
    fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration>;
    /// Captures the calls of `work` without executing them (launches, products, zeroing and copies on the device; no transfers), under a
    /// number for `replay`.
    ///
    /// # Errors
    /// If `work` fails, or does what cannot be captured.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<u64>;
    /// Executes a captured graph.
    ///
    /// # Errors
    /// If the graph's launch is refused.
    fn replay(&self, graph: u64) -> Result<()>;
    /// Frees a captured graph.
    fn forget(&self, graph: u64);
}

/// What decides between kernels, and on grids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// Major and minor: (9, 0) of Hopper.
    pub compute_capability: (u32, u32),
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// The most shared memory that a block may use, bytes.
    pub shared_memory: u32,
    /// Whether this is a program on a CPU, whose time says nothing about a GPU.
    pub simulated: bool,
}

impl Chip {
    /// Whether the kernels of `*_hopper.cu` run here.
    pub fn is_hopper(&self) -> bool {
        self.compute_capability == (9, 0)
    }
}

/// A kernel's argument: an address, the bytes of a scalar or a plain struct, or a tensor map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// An address in device memory; 0 is null.
    Address(u64),
    /// Up to 32 bytes by value.
    Scalar {
        /// The bytes, padded with 0.
        words: [u64; 4],
        /// How many of them count.
        bytes: usize,
    },
    /// A tensor map for TMA.
    Map(TensorMap),
}

/// A row-major bf16 matrix and the box of it that one copy takes, whose rows are 64 columns: 128 bytes, swizzled as many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// A multiple of 16.
    pub address: u64,
    /// Rows of the matrix.
    pub rows: usize,
    /// A multiple of 8.
    pub columns: usize,
    /// At most 256.
    pub box_rows: u32,
}

impl Tiling {
    /// Columns of a box: 64 of bf16 are 128 bytes.
    pub const BOX_COLUMNS: u32 = 64;
}

/// The driver's own form of a [`Tiling`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

impl Arg {
    /// The null pointer.
    pub const NULL: Arg = Arg::Address(0);
}

/// By value, at most 32 bytes: more does not compile.
impl<T: Pod> From<T> for Arg {
    fn from(value: T) -> Arg {
        const { assert!(size_of::<T>() <= 32, "a kernel's argument is larger than 32 bytes") };
        let mut words = [0u64; 4];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        Arg::Scalar { words, bytes: size_of::<T>() }
    }
}

/// One launch of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch<'a> {
    /// `op_variant_dtype`.
    pub kernel: &'a str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The kernel's arguments in order.
    pub args: &'a [Arg],
}

/// A row-major matrix, or as many as the product has, `batch_stride` elements from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Address of the first element.
    pub address: u64,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Elements from one row to the next, as stored.
    pub stride: usize,
    /// Stored as the transpose.
    pub transposed: bool,
    /// Elements from one matrix of the batch to the next.
    pub batch_stride: usize,
}

/// `C = alpha A B + beta C (+ bias in every row)`, sums in f32: A `[m, k]`, B `[k, n]` of one dtype, C `[m, n]`, bias `[n]` of C's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matmul {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The length of each sum.
    pub k: usize,
    /// Number of products.
    pub batch: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what C held.
    pub beta: f32,
    /// The left factor.
    pub a: Operand,
    /// The right factor.
    pub b: Operand,
    /// Never transposed.
    pub c: Operand,
    /// Address of the bias, if any.
    pub bias: Option<u64>,
}

impl Matmul {
    /// For errors.
    pub fn sizes(&self) -> String {
        let Matmul { m, n, k, batch, a, c, .. } = self;
        format!("[{m}, {k}] [{k}, {n}] x {batch}, {:?} to {:?}", a.dtype, c.dtype)
    }
}
