//! How well one measurement predicts another.

/// Spearman's rank correlation of two lists of equal length: Pearson's of the ranks, of which equal values share the mean. `None` where
/// a list is constant, or has fewer than two values.
///
/// # Panics
/// If the lists differ in length.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "lists that are compared");
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
    (scale > 0.0).then(|| dot(&a, &b) / scale)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let (mut ranks, mut first) = (vec![0.0; values.len()], 0);
    for equal in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let mean = first as f64 + (equal.len() as f64 - 1.0) / 2.0;
        equal.iter().for_each(|i| ranks[*i] = mean);
        first += equal.len();
    }
    ranks
}

/// The entries of a symmetric matrix `[n, n]` above its diagonal: one for each pair.
pub fn pairs(matrix: &[f64], n: usize) -> Vec<f64> {
    (0..n).flat_map(|i| matrix[i * n + i + 1..(i + 1) * n].iter().copied()).collect()
}
