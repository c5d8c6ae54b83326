//! Attention over forests against dense f64 attention masked by parent pointers, and the paged decoder against the forest.

use crate::common;

use common::numeric::{assert_close, assert_gradient, below, dot, values, wide};
use half::bf16;
use uncouple::device::Dtype;
use uncouple::forest::{Forest, ROOT};
use uncouple::ops::attention::{self, Shape, Visibility};
use uncouple::ops::decode_attention::{self, Element, Input, Paged};

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
    Shape { heads, kv_heads, head_dim }
}

/// The keys that each node sees: itself and its ancestors.
fn visible(forest: &Forest) -> Vec<Vec<usize>> {
    let path = |node: usize| {
        let mut path = vec![node];
        while forest.parent[path[path.len() - 1]] != ROOT {
            path.push(forest.parent[path[path.len() - 1]] as usize);
        }
        path
    };
    (0..forest.len()).map(path).collect()
}

/// For each token and head: where its query, and its kv head's keys and values, start in a row.
fn heads(s: Shape) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let (d, group) = (s.head_dim, s.heads / s.kv_heads);
    (0..s.heads).map(move |h| (h, h * d, (s.heads + h / group) * d, (s.heads + s.kv_heads + h / group) * d))
}

fn softmax(row: &[f64], key: usize, q: &[f64], x: &[f64], keys: &[usize]) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let scores: Vec<f64> = keys.iter().map(|k| dot(q, &x[k * row.len() + key..][..q.len()]) * scale).collect();
    let max = scores.iter().copied().fold(f64::MIN, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

fn reference(x: &[f64], s: Shape, visible: &[Vec<usize>]) -> Vec<f64> {
    let (d, stride, q_dim) = (s.head_dim, s.qkv_dim(), s.q_dim());
    let mut out = vec![0.0; visible.len() * q_dim];
    for ((row, out), keys) in x.chunks(stride).zip(out.chunks_mut(q_dim)).zip(visible) {
        for (h, q, key, value) in heads(s) {
            let p = softmax(row, key, &row[q..q + d], x, keys);
            for (k, p) in keys.iter().zip(p) {
                (0..d).for_each(|j| out[h * d + j] += p * x[k * stride + value + j]);
            }
        }
    }
    out
}

fn reference_gradient(d_out: &[f64], x: &[f64], s: Shape, visible: &[Vec<usize>]) -> Vec<f64> {
    let (d, stride, q_dim) = (s.head_dim, s.qkv_dim(), s.q_dim());
    let scale = 1.0 / (d as f64).sqrt();
    let mut dx = vec![0.0; x.len()];
    for (t, keys) in visible.iter().enumerate() {
        let row = &x[t * stride..][..stride];
        for (h, q, key, value) in heads(s) {
            let p = softmax(row, key, &row[q..q + d], x, keys);
            let d_o = &d_out[t * q_dim + h * d..][..d];
            let dp: Vec<f64> = keys.iter().map(|k| dot(d_o, &x[k * stride + value..][..d])).collect();
            let mean = dot(&p, &dp);
            for ((k, p), dp) in keys.iter().zip(p).zip(dp) {
                let ds = p * (dp - mean) * scale;
                for j in 0..d {
                    dx[t * stride + q + j] += ds * x[k * stride + key + j];
                    dx[k * stride + key + j] += ds * row[q + j];
                    dx[k * stride + value + j] += p * d_o[j];
                }
            }
        }
    }
    dx
}

fn chain(n: usize) -> Forest {
    Forest::new(&[(0..n as u32).collect::<Vec<_>>()])
}

/// `n` sequences of up to `longest` tokens that branch at every depth: a sequence continues a prefix of an earlier one.
fn branches(seed: u64, n: usize, longest: usize) -> Forest {
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    for i in 0..n {
        let mut sequence = match i {
            0 => Vec::new(),
            _ => {
                let from = &sequences[below(seed, i, i)];
                from[..below(seed + 1, i, from.len() + 1)].to_vec()
            }
        };
        sequence.extend((0..1 + below(seed + 2, i, longest)).map(|t| (i * 1000 + t) as u32));
        sequences.push(sequence);
    }
    Forest::new(&sequences)
}

/// Forward and backward on one forest; returns `qkv` and the output for further questions.
fn check(what: &str, forest: &Forest, s: Shape, scale: f32, tolerance: f64) -> (Vec<f32>, Vec<f32>) {
    let n = forest.len();
    let (qkv, d_out) = (values(n as u64, n * s.qkv_dim(), scale), values(1, n * s.q_dim(), 1.0));
    let visibility = Visibility::new(&forest.reach);
    let (mut out, mut softmax) = (vec![f32::NAN; n * s.q_dim()], vec![f32::NAN; n * s.heads * 2]);
    attention::forward(Dtype::F32, &qkv, s, &visibility, &mut out, &mut softmax);
    let mut d_qkv = vec![f32::NAN; qkv.len()];
    attention::backward(Dtype::F32, &d_out, &qkv, &out, &softmax, s, &visibility, &mut d_qkv);

    let (x, g, seen) = (wide(&qkv), wide(&d_out), visible(forest));
    let what = format!("{what}, {n} tokens, {s:?}");
    assert_close(&format!("{what}: out"), &out, &reference(&x, s, &seen), tolerance);
    let want = reference_gradient(&g, &x, s, &seen);
    assert_close(&format!("{what}: gradient"), &d_qkv, &want, tolerance);
    assert_gradient(&what, |x| dot(&reference(x, s, &seen), &g), &x, &want);
    (qkv, out)
}

#[test]
fn chains_of_every_head_layout() {
    for s in [shape(1, 1, 8), shape(2, 1, 64), shape(4, 2, 8), shape(7, 1, 8), shape(14, 2, 64), shape(2, 2, 128)] {
        for n in [1, 2, 17, 64, 65] {
            check("chain", &chain(n), s, 1.0, 2e-6);
        }
    }
    check("chain", &chain(257), shape(7, 1, 8), 1.0, 2e-6);
}

#[test]
fn nested_branches() {
    for seed in 0..6 {
        check("branches", &branches(seed, 12, 30), shape(4, 2, 8), 1.0, 2e-6);
    }
    check("long branches", &branches(9, 5, 150), shape(7, 1, 64), 1.0, 2e-6);
    check("bushy", &branches(10, 60, 3), shape(2, 1, 128), 1.0, 2e-6);
}

#[test]
fn more_tokens_than_a_backward_task() {
    let prompt: Vec<u32> = (0..700).collect();
    let answers: Vec<Vec<u32>> =
        (0..9).map(|i| prompt.iter().copied().chain((0..100 + i).map(|t| 1000 * i + t)).collect()).collect();
    check("shared prompt", &Forest::new(&answers), shape(2, 1, 8), 1.0, 2e-6);
    check("long chain", &chain(1100), shape(2, 2, 8), 1.0, 2e-6);
    check("a grove", &branches(3, 120, 20), shape(2, 1, 8), 1.0, 2e-6);
}

/// Scores of ±500: no overflow, and the probabilities keep their bits.
#[test]
fn large_scores() {
    check("sharp", &branches(5, 10, 40), shape(2, 1, 64), 20.0, 2e-4);
}

/// A change of one token's keys and values reaches its subtree and nothing else.
#[test]
fn nothing_invisible_is_read() {
    let (forest, s) = (branches(4, 12, 12), shape(2, 1, 8));
    let (n, visibility) = (forest.len(), Visibility::new(&forest.reach));
    let run = |qkv: &[f32]| {
        let (mut out, mut softmax) = (vec![0.0; n * s.q_dim()], vec![0.0; n * s.heads * 2]);
        attention::forward(Dtype::F32, qkv, s, &visibility, &mut out, &mut softmax);
        out
    };
    let qkv = values(1, n * s.qkv_dim(), 1.0);
    let before = run(&qkv);
    for changed in (0..n).step_by(7) {
        let mut qkv = qkv.clone();
        qkv[changed * s.qkv_dim() + s.q_dim()..][..2 * s.head_dim].iter_mut().for_each(|x| *x += 1.0);
        let after = run(&qkv);
        for node in 0..n {
            let own = node * s.q_dim()..(node + 1) * s.q_dim();
            let inside = (changed..forest.reach[changed] as usize).contains(&node);
            assert_eq!(before[own.clone()] != after[own], inside, "token {changed} and query {node}");
        }
    }
}

/// Every node decoded alone, from pages that hold its path, against the forest's output. Unused places hold NaN.
#[test]
fn decoding_equals_the_forest() {
    decoding_equals::<4>(shape(4, 2, 8));
    decoding_equals::<32>(shape(7, 1, 64));
    decoding_equals::<16>(shape(2, 2, 128));
}

fn decoding_equals<const PAGE: usize>(s: Shape) {
    let forest = branches(6, 10, 30);
    let (d, group) = (s.head_dim, s.heads / s.kv_heads);
    let (qkv, out) = check("decoding", &forest, s, 1.0, 2e-6);
    let mut scores = Vec::new();
    for (node, mut path) in visible(&forest).into_iter().enumerate() {
        path.reverse();
        for kv in 0..s.kv_heads {
            let part = |t: usize, at: usize| &qkv[t * s.qkv_dim() + at * d..][..d];
            let paged = |tokens: &[usize]| {
                let (mut keys, mut values) = (vec![f32::NAN; d * PAGE], vec![f32::NAN; d * PAGE]);
                for (i, t) in tokens.iter().enumerate() {
                    part(*t, s.heads + kv).iter().enumerate().for_each(|(j, k)| keys[j * PAGE + i] = *k);
                    values[i * d..][..d].copy_from_slice(part(*t, s.heads + s.kv_heads + kv));
                }
                (keys, values)
            };
            let pages: Vec<_> = path.chunks(PAGE).map(paged).collect();
            let pages = pages.iter().map(|(k, v)| (&k[..], &v[..]));
            let own = kv * group * d..(kv + 1) * group * d;
            let mut got = vec![f32::NAN; group * d];
            let q = &qkv[node * s.qkv_dim()..][own.clone()];
            decode_attention::decode::<PAGE, f32>(q, d, path.len(), pages, &mut scores, &mut got);
            let want = wide(&out[node * s.q_dim()..][own]);
            assert_close(&format!("node {node}, kv head {kv}"), &got, &want, 2e-6);
        }
    }
}

fn pooled<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn threads_change_no_bit() {
    for (forest, s) in [(chain(900), shape(6, 2, 16)), (branches(3, 60, 40), shape(2, 1, 8))] {
        let n = forest.len();
        let (qkv, d_out) = (values(1, n * s.qkv_dim(), 1.0), values(2, n * s.q_dim(), 1.0));
        let run = || {
            let visibility = Visibility::new(&forest.reach);
            let (mut out, mut softmax) = (vec![0.0; n * s.q_dim()], vec![0.0; n * s.heads * 2]);
            attention::forward(Dtype::F32, &qkv, s, &visibility, &mut out, &mut softmax);
            let mut d_qkv = vec![0.0; qkv.len()];
            attention::backward(Dtype::F32, &d_out, &qkv, &out, &softmax, s, &visibility, &mut d_qkv);
            (out, d_qkv)
        };
        let one = pooled(1, run);
        assert!(one == pooled(2, run) && one == pooled(5, run), "{n} tokens, {s:?}");
    }
}

/// Keys and values of one sequence in pages. Unused places hold NaN.
struct Pages<const PAGE: usize, E> {
    /// `[kv_heads][pages]`
    heads: Vec<Vec<(Vec<E>, Vec<E>)>>,
}

impl<const PAGE: usize, E: Element> Pages<PAGE, E> {
    fn new(qkv: &[f32], s: Shape) -> Pages<PAGE, E> {
        let d = s.head_dim;
        let page = |rows: &[f32], kv: usize| {
            let unused = || vec![E::narrow(f32::NAN); d * PAGE];
            let (mut keys, mut values) = (unused(), unused());
            for (i, row) in rows.chunks(s.qkv_dim()).enumerate() {
                (0..d).for_each(|j| keys[j * PAGE + i] = E::narrow(row[(s.heads + kv) * d + j]));
                let own = &row[(s.heads + s.kv_heads + kv) * d..][..d];
                values[i * d..][..d].iter_mut().zip(own).for_each(|(to, v)| *to = E::narrow(*v));
            }
            (keys, values)
        };
        let pages = |kv| qkv.chunks(PAGE * s.qkv_dim()).map(|rows| page(rows, kv)).collect();
        Pages { heads: (0..s.kv_heads).map(pages).collect() }
    }
}

impl<const PAGE: usize, E: Element> Paged for &Pages<PAGE, E> {
    type Element = E;

    fn pages(&self, kv: usize) -> impl Iterator<Item = (&[E], &[E])> + Clone {
        self.heads[kv].iter().map(|(keys, values)| (&keys[..], &values[..]))
    }
}

/// New tokens of several sequences at once, few and many, behind pasts of all lengths, against the forest's output; on one thread and
/// on several, to the bit.
#[test]
fn appending_equals_the_forest() {
    appending_equals::<32, f32>(shape(6, 2, 8));
    appending_equals::<16, f32>(shape(3, 1, 64));
    appending_equals::<32, bf16>(shape(3, 1, 64));
}

fn appending_equals<const PAGE: usize, E: Element>(s: Shape) {
    let cases = [
        (0, 1),
        (0, 15),
        (0, 16),
        (0, 200),
        (1, 1),
        (31, 2),
        (32, 17),
        (33, 64),
        (500, 65),
        (800, 16),
        (1023, 3),
        (1500, 1),
        (2100, 5),
    ];
    let n = 2105;
    // Numbers that every cache holds exactly.
    let qkv: Vec<f32> = values(3, n * s.qkv_dim(), 2.0).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect();
    let visibility = Visibility::new(&vec![n as u32; n]);
    let (mut out, mut softmax) = (vec![0.0; n * s.q_dim()], vec![0.0; n * s.heads * 2]);
    attention::forward(Dtype::F32, &qkv, s, &visibility, &mut out, &mut softmax);
    let held: Vec<Pages<PAGE, E>> =
        cases.iter().map(|(past, new)| Pages::new(&qkv[..(past + new) * s.qkv_dim()], s)).collect();
    let inputs = |cases: &[(usize, usize)], held: &[Pages<PAGE, E>]| {
        let input = |(&(past, new), cache)| (past * s.qkv_dim()..(past + new) * s.qkv_dim(), past, cache);
        let inputs: Vec<_> = cases.iter().zip(held).map(input).collect();
        let inputs: Vec<_> = inputs.into_iter().map(|(at, past, cache)| Input { qkv: &qkv[at], past, cache }).collect();
        let mut got = vec![f32::NAN; cases.iter().map(|(_, new)| new * s.q_dim()).sum()];
        decode_attention::forward::<PAGE, _>(Dtype::F32, &inputs, s, false, &mut got);
        let mut spread = vec![f32::NAN; got.len()];
        pooled(3, || decode_attention::forward::<PAGE, _>(Dtype::F32, &inputs, s, true, &mut spread));
        assert!(got == spread, "on several threads");
        got
    };
    let together = inputs(&cases, &held);
    let mut rows = &together[..];
    for ((past, new), held) in cases.iter().zip(held) {
        let (own, rest) = rows.split_at(new * s.q_dim());
        rows = rest;
        let want = wide(&out[past * s.q_dim()..(past + new) * s.q_dim()]);
        assert_close(&format!("{new} tokens behind {past}, {s:?}"), own, &want, 2e-6);
        assert!(inputs(&[(*past, *new)], &[held]) == own, "beside others");
    }
}
