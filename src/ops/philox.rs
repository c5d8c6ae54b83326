//! Philox 4x32-10 (Salmon et al. 2011): random numbers as a pure function of a seed, a stream and an index.
//!
//! Nothing is advanced, so any element may be drawn alone, in any order, on any device, with the same result.

/// Ten rounds of Philox on `counter` under `key`.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let even = 0xD251_1F53u64 * u64::from(counter[0]);
        let odd = 0xCD9E_8D57u64 * u64::from(counter[2]);
        counter = [
            (odd >> 32) as u32 ^ counter[1] ^ key[0],
            odd as u32,
            (even >> 32) as u32 ^ counter[3] ^ key[1],
            even as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Block number `index` of `stream` under `seed`: four independent words.
pub fn block(seed: u64, stream: u64, index: u64) -> [u32; 4] {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let ([i0, i1], [s0, s1]) = (halves(index), halves(stream));
    philox4x32([i0, i1, s0, s1], halves(seed))
}

/// What a run's random numbers are drawn for: no two uses share one. (A model's first weights are drawn by the hash of their names.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Tokens sampled in a training iteration.
    Rollout(u32),
    /// Actions drawn to be judged in an iteration, and the tokens of their judgments.
    Judgments(u32),
    /// Actions sampled again for the suggestions made after so many iterations.
    Resampling(u32),
    /// The same suggestions, where the policy writes them.
    Sentences(u32),
    /// Every evaluation: the same games meet the same numbers, whenever they are played.
    Evaluation,
    /// Actions that an evaluation chooses to be judged, and the tokens of their judgments.
    EvaluationJudgments,
    /// Actions sampled again in an evaluation, to see how consistent they are.
    Consistency,
    /// What a demonstration does instead of its plan.
    NoiseActions,
    /// Commands off the plan, to be judged bad.
    OffPlan,
    /// Suggestions made up for the cold start.
    MadeUpSuggestions,
    /// The demonstrations of a step of the cold start.
    ColdStart(u32),
    /// A permutation test of coupling.
    Permutations,
    /// A step of the theory's simulation.
    Theory(u32),
    /// Tokens that continue a text, or a game that somebody watches.
    Continuation,
    /// Weights that an optimizer step rounds to bf16.
    WeightRounding(u32),
}

impl Stream {
    /// Largest count of iterations or steps.
    const MAX: u32 = (1 << 27) - 1;

    /// A number of its own; the upper half of [`Stream::part`].
    ///
    /// # Panics
    /// If a count is above `Stream::MAX`, which configurations cannot ask for.
    pub fn number(self) -> u32 {
        let (kind, count) = match self {
            Stream::Rollout(iteration) => (0, iteration),
            Stream::Judgments(iteration) => (1, iteration),
            Stream::Resampling(iterations) => (2, iterations),
            Stream::Sentences(iterations) => (3, iterations),
            Stream::Evaluation => (4, 0),
            Stream::EvaluationJudgments => (5, 0),
            Stream::Consistency => (6, 0),
            Stream::NoiseActions => (7, 0),
            Stream::OffPlan => (8, 0),
            Stream::MadeUpSuggestions => (9, 0),
            Stream::ColdStart(step) => (10, step),
            Stream::Permutations => (11, 0),
            Stream::Theory(step) => (12, step),
            Stream::Continuation => (13, 0),
            Stream::WeightRounding(step) => (14, step),
        };
        assert!(count <= Stream::MAX, "{self:?}: at most {}", Stream::MAX);
        kind << 27 | count
    }

    /// The stream of one of its parts, an episode for instance; of the part only 32 bits count.
    pub fn part(self, part: u64) -> u64 {
        u64::from(self.number()) << 32 | part & u64::from(u32::MAX)
    }
}

/// A uniform number in the open interval (0, 1) from one word: the centre of one of 2^23 cells, exact in f32.
pub fn uniform(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / (1 << 23) as f32)
}

/// Four standard normal numbers from one block (Box-Muller).
pub fn normals(block: [u32; 4]) -> [f32; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * uniform(a).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * uniform(b)).sin_cos();
        [radius * cos, radius * sin]
    };
    let ([x, y], [z, w]) = (pair(block[0], block[1]), pair(block[2], block[3]));
    [x, y, z, w]
}
