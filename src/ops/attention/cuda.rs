//! Attention on a GPU, in bf16; heads of 64 or 128. A Hopper GPU has kernels of its own.

use super::Shape;
use crate::device::{Arg, Gpu, Launch, Packed, Result, Slice, Tensor, Unpacked, expect};
use half::bf16;
use std::cmp::Reverse;

/// Queries of a block of the forward pass.
const QUERIES: usize = 128;
/// Keys of a tile, for which the kernels decide whether they need it and whether a mask; rows of a block of the backward pass.
const KEYS: usize = 64;
/// Keys of a tile on Hopper.
const HOPPER_KEYS: usize = 2 * KEYS;

impl Shape {
    fn has_kernels(&self) -> bool {
        let Shape { heads, kv_heads, head_dim } = *self;
        kv_heads > 0 && heads.is_multiple_of(kv_heads) && (head_dim == 64 || head_dim == 128)
    }
}

/// Queries of a tile on Hopper: 64 of a warpgroup.
fn hopper_queries(head_dim: usize) -> usize {
    if head_dim == 64 { 192 } else { 128 }
}

/// Who sees whom, on the device: computed once per batch, read by every layer.
pub struct Visibility {
    tokens: usize,
    /// Zero from the last token on to the end of its tile.
    reach: Tensor<u32>,
    /// The least reach of each tile of keys, then the greatest of each.
    tiles: Tensor<u32>,
    /// Hopper's tiles of queries for heads of 64, and of 128: those that see the most tiles of keys first.
    orders: [Tensor<u32>; 2],
    /// Hopper's tiles of keys: those that the most queries see first.
    key_order: Tensor<u32>,
}

impl Visibility {
    /// From `reach` (see [`crate::forest`]).
    pub fn new(gpu: &Gpu, reach: &[u32]) -> Result<Visibility> {
        let mut packed = Packed::default();
        let visibility = Visibility::pack(&mut packed, reach);
        Ok(visibility(&mut packed.upload(gpu)?))
    }

    /// The same beside other lists.
    pub fn pack(packed: &mut Packed, reach: &[u32]) -> impl FnOnce(&mut Unpacked) -> Visibility + use<> {
        let least = reach.chunks(KEYS).map(|tile| tile.iter().copied().min().unwrap_or(0));
        let greatest = reach.chunks(KEYS).map(|tile| tile.iter().copied().max().unwrap_or(0));
        let tiles: Vec<u32> = least.chain(greatest).collect();
        let mut padded = reach.to_vec();
        padded.resize(reach.len().next_multiple_of(HOPPER_KEYS), 0);
        let orders = [64, 128].map(|head_dim| packed.add(&order(reach, hopper_queries(head_dim))));
        let (key_order, tiles, tokens) = (packed.add(&key_order(reach)), packed.add(&tiles), reach.len());
        let reach = packed.add(&padded);
        move |on| Visibility {
            tokens,
            reach: on.take(reach),
            tiles: on.take(tiles),
            orders: orders.map(|order| on.take(order)),
            key_order: on.take(key_order),
        }
    }
}

/// The tiles of so many queries, those that see the most tiles of keys first.
fn order(reach: &[u32], queries: usize) -> Vec<u32> {
    let greatest: Vec<u32> = reach.chunks(HOPPER_KEYS).map(|tile| tile.iter().copied().max().unwrap_or(0)).collect();
    let seen = |tile: u32| {
        let first = tile as usize * queries;
        let before = (first + queries).min(reach.len()).div_ceil(HOPPER_KEYS);
        greatest[..before].iter().filter(|end| **end as usize > first).count()
    };
    let mut order: Vec<u32> = (0..reach.len().div_ceil(queries) as u32).collect();
    order.sort_by_cached_key(|tile| Reverse(seen(*tile)));
    order
}

/// The tiles of keys, those that the longest stretch of queries sees first.
fn key_order(reach: &[u32]) -> Vec<u32> {
    let seen = |tile: u32| {
        let first = tile as usize * HOPPER_KEYS;
        let last = reach[first..].iter().take(HOPPER_KEYS).copied().max().unwrap_or(0);
        last as usize - first
    };
    let mut order: Vec<u32> = (0..reach.len().div_ceil(HOPPER_KEYS) as u32).collect();
    order.sort_by_cached_key(|tile| Reverse(seen(*tile)));
    order
}

/// As [`super::forward`]: `qkv` `[tokens, qkv_dim]` (rotated) to `out` `[tokens, heads · head_dim]`, `softmax` `[tokens, heads, 2]`.
/// By the kernel that is the GPU's own, if there is one.
pub fn forward(
    gpu: &Gpu,
    qkv: &Slice<bf16>,
    shape: Shape,
    visibility: &Visibility,
    out: &Slice<bf16>,
    softmax: &Slice<f32>,
) -> Result<()> {
    if !gpu.is_hopper() {
        return forward_portable(gpu, qkv, shape, visibility, out, softmax);
    }
    check_forward(qkv, shape, visibility, out, softmax)?;
    let Shape { heads, head_dim, .. } = shape;
    let [narrow, wide] = &visibility.orders;
    // As `Plan` in the kernel: queries; stages of keys, of values, of their reach and more.
    let (queries, stages) = (hopper_queries(head_dim), 256 / head_dim);
    let stage = 2 * 2 * HOPPER_KEYS * head_dim + 4 * HOPPER_KEYS + 16 + 4 * 8;
    let shared = 2 * queries * head_dim + stages * stage + 2 * 8;
    let order = if head_dim == 64 { narrow } else { wide };
    let map = gpu.tensor_map(qkv, shape.qkv_dim(), 64)?;
    let mut args = vec![map, visibility.reach.arg(), visibility.tiles.arg(), order.arg(), out.arg(), softmax.arg()];
    args.extend(sizes(shape, visibility));
    let kernel = &format!("attention_hopper_forward_hd{head_dim}_bf16");
    let grid = [(order.len() * heads).min(gpu.multiprocessors() as usize) as u32, 1, 1];
    let block = [2 * queries as u32 + 128, 1, 1];
    gpu.launch(Launch { kernel, grid, block, shared: shared as u32, args: &args })
}

/// The same, by the kernel that every GPU has.
pub fn forward_portable(
    gpu: &Gpu,
    qkv: &Slice<bf16>,
    shape: Shape,
    visibility: &Visibility,
    out: &Slice<bf16>,
    softmax: &Slice<f32>,
) -> Result<()> {
    check_forward(qkv, shape, visibility, out, softmax)?;
    let Shape { heads, head_dim, .. } = shape;
    let mut args = vec![qkv.arg(), visibility.reach.arg(), visibility.tiles.arg(), out.arg(), softmax.arg()];
    args.extend(sizes(shape, visibility));
    let kernel = &format!("attention_forward_hd{head_dim}_bf16");
    let grid = [heads as u32, visibility.tokens.div_ceil(QUERIES) as u32, 1];
    // The block's queries, and two stages of a tile's keys and values.
    let shared = (2 * (QUERIES + 4 * KEYS) * head_dim) as u32;
    gpu.launch(Launch { kernel, grid, block: [256, 1, 1], shared, args: &args })
}

fn check_forward(
    qkv: &Slice<bf16>,
    shape: Shape,
    visibility: &Visibility,
    out: &Slice<bf16>,
    softmax: &Slice<f32>,
) -> Result<()> {
    let tokens = visibility.tokens;
    let lengths = [qkv.len(), out.len(), softmax.len()];
    let wanted = [tokens * shape.qkv_dim(), tokens * shape.q_dim(), 2 * tokens * shape.heads];
    expect("attention forward", shape.has_kernels() && lengths == wanted, || {
        format!("{lengths:?} elements for {wanted:?} of {tokens} tokens, {shape:?} (heads of 64 or 128)")
    })
}

/// What every kernel's arguments end with.
fn sizes(shape: Shape, visibility: &Visibility) -> [Arg; 4] {
    let [tokens, heads, kv_heads] = [visibility.tokens, shape.heads, shape.kv_heads].map(|n| Arg::from(n as i32));
    [tokens, heads, kv_heads, Arg::from(shape.scale())]
}

/// What a backward pass reads and writes.
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    /// `[tokens, heads · head_dim]`
    pub d_out: &'a Slice<bf16>,
    /// `[tokens, qkv_dim]`
    pub qkv: &'a Slice<bf16>,
    /// `[tokens, heads · head_dim]`
    pub out: &'a Slice<bf16>,
    /// As the forward pass left it.
    pub softmax: &'a Slice<f32>,
    /// `[tokens, qkv_dim]`, overwritten.
    pub d_qkv: &'a Slice<bf16>,
}

impl Backward<'_> {
    fn check(&self, shape: Shape, visibility: &Visibility) -> Result<()> {
        let Backward { d_out, qkv, out, softmax, d_qkv } = self;
        let tokens = visibility.tokens;
        let lengths = [d_out.len(), qkv.len(), out.len(), softmax.len(), d_qkv.len()];
        let [wide, q_wide] = [tokens * shape.qkv_dim(), tokens * shape.q_dim()];
        let wanted = [q_wide, wide, q_wide, 2 * tokens * shape.heads, wide];
        expect("attention backward", shape.has_kernels() && lengths == wanted, || {
            format!("{lengths:?} elements for {wanted:?} of {tokens} tokens, {shape:?} (heads of 64 or 128)")
        })
    }
}

/// As [`super::backward`]. By the kernels that are the GPU's own, if there are any.
pub fn backward(gpu: &Gpu, pass: Backward, shape: Shape, visibility: &Visibility) -> Result<()> {
    if !gpu.is_hopper() {
        return backward_portable(gpu, pass, shape, visibility);
    }
    pass.check(shape, visibility)?;
    let Shape { heads, kv_heads, head_dim } = shape;
    let Visibility { tokens, reach, tiles, orders, key_order } = visibility;
    let padded = tokens.next_multiple_of(KEYS);
    let rows = gpu.uninit::<f32>(2 * padded * heads)?;
    let [count, of] = [*tokens, heads].map(|n| Arg::from(n as i32));
    let args = [pass.d_out.arg(), pass.out.arg(), pass.softmax.arg(), rows.arg(), count, of];
    let threads = padded * shape.q_dim() / 8;
    gpu.launch_threads(&format!("attention_backward_hopper_rows_hd{head_dim}_bf16"), threads, &args)?;
    let d_out = gpu.tensor_map(pass.d_out, shape.q_dim(), 64)?;
    let qkv = gpu.tensor_map(pass.qkv, shape.qkv_dim(), 64)?;
    // As `SharedKv` and `SharedQ` in the kernels.
    for (of, owners, order, beside) in [("kv", kv_heads, key_order, 1616), ("q", heads, &orders[1], 848)] {
        let mut args = vec![d_out, qkv, rows.arg(), reach.arg(), tiles.arg(), order.arg(), pass.d_qkv.arg()];
        args.extend(sizes(shape, visibility));
        let kernel = &format!("attention_backward_hopper_{of}_hd{head_dim}_bf16");
        let (grid, shared) = ([owners as u32, order.len() as u32, 1], (1280 * head_dim + beside) as u32);
        gpu.launch(Launch { kernel, grid, block: [384, 1, 1], shared, args: &args })?;
    }
    Ok(())
}

/// The same, by the kernels that every GPU has.
pub fn backward_portable(gpu: &Gpu, pass: Backward, shape: Shape, visibility: &Visibility) -> Result<()> {
    pass.check(shape, visibility)?;
    let Backward { d_out, qkv, out, softmax, d_qkv } = pass;
    let Shape { heads, kv_heads, head_dim } = shape;
    let Visibility { tokens, reach, tiles, .. } = visibility;
    let delta = gpu.uninit::<f32>(tokens * heads)?;
    let args = [d_out.arg(), out.arg(), delta.arg(), Arg::from((tokens * heads) as i32)];
    gpu.launch_threads(&format!("attention_backward_delta_hd{head_dim}_bf16"), tokens * shape.q_dim() / 8, &args)?;
    let mut args = vec![d_out.arg(), qkv.arg(), softmax.arg(), delta.arg(), reach.arg(), tiles.arg(), d_qkv.arg()];
    args.extend(sizes(shape, visibility));
    // The block's own rows, and two stages of a tile's; beside them what 2 · 64 queries' rows are computed from.
    let shared = 2 * 6 * KEYS * head_dim;
    for (of, owners, shared) in [("kv", kv_heads, shared + 2 * KEYS * 12), ("q", heads, shared)] {
        let kernel = &format!("attention_backward_{of}_hd{head_dim}_bf16");
        let grid = [owners as u32, tokens.div_ceil(KEYS) as u32, 1];
        gpu.launch(Launch { kernel, grid, block: [128, 1, 1], shared: shared as u32, args: &args })?;
    }
    Ok(())
}
