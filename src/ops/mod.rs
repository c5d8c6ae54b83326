//! One op per file: the formula, the CPU code, its backward. Functions work on a block of rows on the calling thread unless
//! they say otherwise; the model runs blocks in parallel.

pub mod adamw;
pub mod advantage;
pub mod attention;
pub mod decode_attention;
pub mod embedding;
pub mod gradient_cosine;
pub mod grouped_logprob;
pub mod linear;
pub mod pcgrad;
pub mod philox;
pub mod qk_norm;
pub mod residual;
pub mod rmsnorm;
pub mod rope;
pub mod sampling;
pub mod swiglu;
