//! What can go wrong on a GPU, each with its mend.

/// The result of a call to a device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call to a device failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum Error {
    #[error("this machine has no NVIDIA driver (libcuda.so.1): install one, or use --device cpu")]
    NoDriver,
    #[error("the NVIDIA driver knows CUDA {}, and this program needs 13.0: update the driver to 580 or newer", version(*.found))]
    DriverTooOld {
        /// As the driver gives it: 12040 is 12.4.
        found: i32,
    },
    #[error("the NVIDIA driver finds no GPU: see `nvidia-smi` and CUDA_VISIBLE_DEVICES, or use --device cpu")]
    NoGpu,
    #[error("this program was built without CUDA kernels: build it with UNCOUPLE_CUDA=require, or use --device cpu")]
    NoKernels,
    #[error("no kernel is named {0}")]
    UnknownKernel(String),
    #[error("kernels/{module}.cu has no image for {gpu}: it is built for compute capability 8.0 and newer")]
    NoImage { module: &'static str, gpu: String },
    #[error("there is no libcublasLt.so.13: pip install \"nvidia-cublas==13.*\" and put its folder on LD_LIBRARY_PATH")]
    NoCublasLt,
    #[error(
        "libcublasLt is of release {}, and this program needs 13: pip install \"nvidia-cublas==13.*\" and put its folder first on \
         LD_LIBRARY_PATH", cublaslt_version(*.found)
    )]
    CublasLtTooOld {
        /// As the library gives it: 120805 is 12.8.5.
        found: usize,
    },
    #[error(
        "out of GPU memory: {asked} bytes were requested, {free} of {total} are free (the largest piece {largest}): lower \
         grpo.micro_tokens or rollout.group_size"
    )]
    OutOfMemory { asked: usize, free: usize, largest: usize, total: usize },
    #[error(
        "out of room for keys and values: {asked} more pages of {tokens} tokens were requested, {free} of {total} are free: lower \
         rollout.max_live"
    )]
    OutOfPages { asked: usize, free: usize, total: usize, tokens: usize },
    #[error("the kernel {kernel} failed, grid {grid:?}, block {block:?}, {shared} bytes of shared memory: {problem}")]
    Launch { kernel: String, grid: [u32; 3], block: [u32; 3], shared: u32, problem: String },
    #[error("the matrix product {sizes} failed: {problem}")]
    Matmul { sizes: String, problem: String },
    #[error("{op}: {sizes}")]
    Shape { op: &'static str, sizes: String },
    #[error("the GPU failed to {what}: {problem}")]
    Call { what: &'static str, problem: String },
}

impl Error {
    /// The same launch or product with another problem.
    pub(super) fn with_problem(self, problem: String) -> Error {
        match self {
            Error::Launch { kernel, grid, block, shared, .. } => Error::Launch { kernel, grid, block, shared, problem },
            Error::Matmul { sizes, .. } => Error::Matmul { sizes, problem },
            other => other,
        }
    }

    /// The same failed call, of something with a name.
    pub(super) fn named(self, name: &str) -> Error {
        match self {
            Error::Call { what, problem } => Error::Call { what, problem: format!("{name}: {problem}") },
            other => other,
        }
    }
}

/// For people: 13.0.2.
pub fn cublaslt_version(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Refuses an op whose sizes do not fit together.
///
/// # Errors
/// If `fits` is false, with the op's name and the text of `sizes`.
pub fn expect(op: &'static str, fits: bool, sizes: impl FnOnce() -> String) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::Shape { op, sizes: sizes() }) }
}
