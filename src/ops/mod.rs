pub mod grouped_logprob;
pub mod philox;
