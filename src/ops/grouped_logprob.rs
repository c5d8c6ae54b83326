/// Gradient of the loss with respect to one scored token's log-prob and to the entropy of its distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenGrad {
    pub logprob: f32,
    pub entropy: f32,
}
