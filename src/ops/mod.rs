pub mod advantage;
pub mod grouped_logprob;
