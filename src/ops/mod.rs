//! One op per file: the formula, the CPU code, its backward. Functions work on a block of rows on the calling thread unless
//! they say otherwise; the model runs blocks in parallel.

pub mod adamw;
pub mod adamw_8bit;
pub mod advantage;
pub mod attention;
pub mod case;
pub mod decode_attention;
pub mod embedding;
pub mod gradient_cosine;
pub mod grouped_logprob;
pub mod linear;
pub mod lora;
pub mod pcgrad;
pub mod philox;
pub mod qk_norm;
pub mod residual;
pub mod rmsnorm;
pub mod rope;
pub mod sampling;
pub mod swiglu;

/// The cases of every op that has kernels, in the order of a model's step: what the self-test, the benchmarks and the tests on the
/// emulated device run.
///
/// ```
/// use uncouple::device::{Gpu, Result};
/// use uncouple::ops::{CASES, case::{Clock, Size, Work}};
///
/// /// Adds up what the calls must do.
/// struct Sum(f64);
///
/// impl Clock for Sum {
///     fn cuda(&mut self, _: &Gpu, _: Work, call: &mut dyn FnMut() -> Result<()>) -> Result<()> {
///         call()
///     }
///
///     fn cpu(&mut self, work: Work, call: &mut dyn FnMut()) {
///         self.0 += if let Work::Bytes(bytes) = work { bytes as f64 } else { 0.0 };
///         call();
///     }
/// }
///
/// let mut sum = Sum(0.0);
/// for case in CASES.iter().flat_map(|cases| cases.iter()).filter(|case| case.name() == "rmsnorm forward") {
///     for instance in case.instances(Size::Ragged) {
///         instance.time(None, &mut sum)?;
///     }
/// }
/// assert!(sum.0 > 0.0);
/// # Ok::<(), uncouple::device::Error>(())
/// ```
pub const CASES: &[&[&dyn case::Case]] = &[
    embedding::case::CASES,
    rmsnorm::case::CASES,
    linear::case::CASES,
    lora::case::CASES,
    rope::case::CASES,
    qk_norm::case::CASES,
    attention::case::CASES,
    decode_attention::case::CASES,
    swiglu::case::CASES,
    grouped_logprob::case::CASES,
    sampling::case::CASES,
    advantage::case::CASES,
    gradient_cosine::case::CASES,
    pcgrad::case::CASES,
    adamw::case::CASES,
    adamw_8bit::case::CASES,
];
