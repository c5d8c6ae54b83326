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
