//! Embedding: y[t] = W[token[t]].

/// Gathers rows of `table` `[vocab, hidden]` into `y` `[tokens, hidden]`.
pub fn forward(tokens: &[u32], table: &[f32], hidden: usize, y: &mut [f32]) {
    for (&token, row) in tokens.iter().zip(y.chunks_exact_mut(hidden)) {
        row.copy_from_slice(&table[token as usize * hidden..][..hidden]);
    }
}

/// `d_table[token[t]] += dy[t]`, in token order: deterministic.
pub fn backward(tokens: &[u32], dy: &[f32], hidden: usize, d_table: &mut [f32]) {
    for (&token, row) in tokens.iter().zip(dy.chunks_exact(hidden)) {
        for (d, g) in d_table[token as usize * hidden..][..hidden].iter_mut().zip(row) {
            *d += g;
        }
    }
}
