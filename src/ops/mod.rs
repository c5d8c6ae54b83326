pub mod grouped_logprob;
