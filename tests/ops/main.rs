//! Every op on the CPU against f64, with its gradient.

#[path = "../common/mod.rs"]
mod common;

mod adamw;
mod adamw_8bit;
mod advantage;
mod attention;
mod bf16;
mod embedding;
mod grouped_logprob;
mod linear;
mod lora;
mod philox;
mod qk_norm;
mod residual;
mod rmsnorm;
mod rope;
mod sampling;
mod swiglu;
