// Log-softmax of the head, its loss and its gradient: l = h Wᵀ / T, p = softmax(l), H = −Σ p ln p, logp_c = l_c − ln Σ eˡ.
// [tokens, vocab] logits are never stored for the batch.
//
// hidden: bf16 [rows, width], W: bf16 [vocab, width], width a multiple of 8; `scale` is 1/T. Row r has the targets
// target_start[r] .. target_start[r + 1] (u32 [rows + 1]) of target_token (u32): any number, so a forest's branches share a row.
// Rows without a target cost as much as others: the host gathers the rows that count. What is per target keeps that order.
//
// kernel                        grid                          block, shared   flops or bytes
// grouped_logprob_forward_bf16  (rows / 128, splits)          256, 48 KB      2 rows · vocab · width
// grouped_logprob_finish_f32    rows / 256                    256             12 splits · rows
// grouped_logprob_loss_f32      targets / 256                 256             about 40 per use of a target
// grouped_logprob_grad_bf16     (rows / 128, stride / 128)    256, 48 KB      2 rows · vocab · width, writes 2 rows · stride
// (quotients rounded up). Blocks that run together share W's tiles in L2.
//
// Floor of the forward pass on an H100 (800 TFLOP/s), 16384 rows, vocab 151936: width 896 5.6 ms, width 2048 12.7 ms, with
// 2.5e9 exponentials, 0.7 ms, beside the product. The gradient's tile is computed a second time, which makes
// 8 rows · vocab · width flops in all against 6 with the chunk's logits kept. To keep them in bf16 moves 4 bytes each, 10 GB:
// 3.3 ms at 3.0 TB/s (f32: 6.6 ms) for the 5.6 ms or 12.7 ms saved. Recomputed, no result depends on a rounded logit, and
// a log-prob is the same number in rollout and in training.
// Checked by emulation only.
#include "common/softmax.cuh"
#include "common/tile.cuh"
#include "common/vec.cuh"

// Calls found(target, n, odd) for each target of `row` that lies in this thread's columns of the tile at `first`.
template <class F>
__device__ inline void find_targets(const unsigned* target_start, const unsigned* target_token, int row, int first,
                                    const F& found) {
    const unsigned end = target_start[row + 1];
    for (unsigned t = target_start[row]; t < end; ++t) {
        const int offset = static_cast<int>(target_token[t]) - first - tile::column(0, 0);
        if (offset >= 0 && offset < 32 && offset % 8 < 2) found(t, offset / 8, offset % 8);
    }
}

// partial: f32 [3, splits, rows], the Softmax of the row over the split's columns; target_logit: f32 [targets], l_c.
extern "C" __global__ void __launch_bounds__(256)
    grouped_logprob_forward_bf16(const bf16* __restrict__ hidden, const bf16* __restrict__ w,
                                 const unsigned* __restrict__ target_start, const unsigned* __restrict__ target_token,
                                 float* __restrict__ partial, float* __restrict__ target_logit, int rows, int vocab,
                                 int width, float scale) {
    DYNAMIC_SHARED(bf16, stages);
    const int first_row = tile::SIZE * blockIdx.x, rows_here = min(tile::SIZE, rows - first_row);
    const int tiles = (vocab + tile::SIZE - 1) / tile::SIZE, splits = gridDim.y, split = blockIdx.y;
    EXPECTS(splits <= tiles && rows_here > 0);
    const int from = static_cast<int>(static_cast<long long>(tiles) * split / splits);
    const int to = static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);
    const bf16* const left = hidden + static_cast<size_t>(first_row) * width;

    Softmax seen[4][2];
#pragma unroll
    for (int m = 0; m < 4; ++m) seen[m][0] = seen[m][1] = {LOWEST, 0.0f, 0.0f};
    for (int v = from; v < to; ++v) {
        const int first = v * tile::SIZE;
        tile::Part l;
        tile::multiply(l, left, rows_here, w + static_cast<size_t>(first) * width, vocab - first, width, width, stages);
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float max = LOWEST;
#pragma unroll
                for (int n = 0; n < 4; ++n)
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd) {
                        float& x = l[m][n][2 * half + odd];
                        x = first + tile::column(n, odd) < vocab ? x * scale : LOWEST;
                        max = fmaxf(max, x);
                    }
                Softmax own = {max, 0.0f, 0.0f};
#pragma unroll
                for (int n = 0; n < 4; ++n)
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd) {
                        const float x = l[m][n][2 * half + odd] - max, e = __expf(x);
                        own.sum += e;
                        own.weighted += e * x;
                    }
                seen[m][half] = merge(seen[m][half], own);
                const int row = first_row + tile::row(m, half);
                if (row < rows)
                    find_targets(target_start, target_token, row, first, [&](unsigned t, int at, int odd_at) {
#pragma unroll
                        for (int n = 0; n < 4; ++n)
#pragma unroll
                            for (int odd = 0; odd < 2; ++odd)
                                if (n == at && odd == odd_at) target_logit[t] = l[m][n][2 * half + odd];
                    });
            }
    }

    // Four lanes share a row, then four warps.
    Softmax* const of_warps = reinterpret_cast<Softmax*>(stages);  // [4, 128]
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Softmax s = seen[m][half];
#pragma unroll
            for (int step = 1; step < 4; step *= 2)
                s = merge(s, {__shfl_xor_sync(~0u, s.max, step), __shfl_xor_sync(~0u, s.sum, step),
                              __shfl_xor_sync(~0u, s.weighted, step)});
            if (threadIdx.x % 4 == 0) of_warps[threadIdx.x / 32 % 4 * tile::SIZE + tile::row(m, half)] = s;
        }
    __syncthreads();
    const int local = threadIdx.x;
    if (local >= rows_here) return;
    Softmax s = of_warps[local];
    for (int warp = 1; warp < 4; ++warp) s = merge(s, of_warps[warp * tile::SIZE + local]);
    const size_t plane = static_cast<size_t>(splits) * rows;
    float* const out = partial + static_cast<size_t>(split) * rows + first_row + local;
    out[0] = s.max;
    out[plane] = s.sum;
    out[2 * plane] = s.weighted;
}

// max, log_sum, entropy: f32 [rows]; logprob: f32 [targets]. Maximum and log-sum stay apart: added up in f32, a likely token's
// small log-prob would drown in a large logit's last bits.
extern "C" __global__ void __launch_bounds__(256)
    grouped_logprob_finish_f32(const float* __restrict__ partial, const float* __restrict__ target_logit,
                               const unsigned* __restrict__ target_start, float* __restrict__ max,
                               float* __restrict__ log_sum, float* __restrict__ entropy, float* __restrict__ logprob,
                               int rows, int splits) {
    const int row = 256 * blockIdx.x + threadIdx.x;
    if (row >= rows) return;
    const size_t plane = static_cast<size_t>(splits) * rows;
    Softmax s = {LOWEST, 0.0f, 0.0f};
    for (int split = 0; split < splits; ++split) {
        const float* const at = partial + static_cast<size_t>(split) * rows + row;
        s = merge(s, {at[0], at[plane], at[2 * plane]});
    }
    const float log = logf(s.sum);
    max[row] = s.max;
    log_sum[row] = log;
    entropy[row] = log - s.weighted / s.sum;
    for (unsigned t = target_start[row]; t < target_start[row + 1]; ++t) logprob[t] = (target_logit[t] - s.max) - log;
}

// The options of src/grpo/loss.rs; dual_clip 0: off, beta 0: no reference is read.
struct Policy {
    float epsilon_low, epsilon_high, dual_clip, beta, entropy_coef;
    int kl_ratio;
};

// The clipped policy loss of each use of a target (use_start: u32 [targets + 1]; a token that sequences share is used by each):
// with r = exp(logp − old): −min(r A, clip(r) A), dual clip, + beta k3, − entropy_coef H, times the use's weight.
// advantage, old (not a number: r = 1), reference, weight: f32 [uses]; found: f32 [3, uses], the weighted loss, the KL term, and −1 at
// the lower bound, 1 at the upper, else 0; target_row: u32 [targets]; d_logprob, d_entropy: f32 [targets], summed over the target's
// uses in order.
// Sequence level: `ratio` [uses] is the sequence's, and `through` [uses] the gradient that reaches this logprob by it, both from
// the host; token level: both null. Computed in f64, as k3 is a small difference; the cost does not show.
extern "C" __global__ void __launch_bounds__(256)
    grouped_logprob_loss_f32(const float* __restrict__ logprob, const float* __restrict__ entropy,
                             const unsigned* __restrict__ target_row, const unsigned* __restrict__ use_start,
                             const float* __restrict__ advantage, const float* __restrict__ old,
                             const float* __restrict__ reference, const float* __restrict__ weight,
                             const float* __restrict__ ratio, const float* __restrict__ through,
                             float* __restrict__ d_logprob, float* __restrict__ d_entropy, float* __restrict__ found,
                             int targets, int uses, Policy o) {
    const int t = 256 * blockIdx.x + threadIdx.x;
    if (t >= targets) return;
    const double lp = logprob[t], h = entropy[target_row[t]];
    const double lowest = 1.0 - o.epsilon_low, highest = 1.0 + o.epsilon_high;
    double by_logprob = 0.0, by_entropy = 0.0;
    for (unsigned u = use_start[t]; u < use_start[t + 1]; ++u) {
        const float sampled = old[u];
        const double own = sampled == sampled ? exp(lp - sampled) : 1.0;
        const double a = advantage[u], r = ratio ? ratio[u] : own;
        const bool low = r < lowest && a < 0.0, high = r > highest && a > 0.0;
        double loss = -(low ? lowest : high ? highest : r) * a, by_ratio = low || high ? 0.0 : -a, d = 0.0, k3 = 0.0;
        const double dual = -static_cast<double>(o.dual_clip) * a;
        if (o.dual_clip > 0.0f && a < 0.0 && loss > dual) {
            loss = dual;
            by_ratio = 0.0;
        }
        if (o.beta != 0.0f) {
            const double x = reference[u] - lp, e = exp(x), beta = o.beta, factor = o.kl_ratio ? r : 1.0;
            k3 = (e - x - 1.0) * factor;
            loss += beta * k3;
            d = beta * (1.0 - e) * factor;
            if (o.kl_ratio) by_ratio += beta * (e - x - 1.0);
        }
        by_logprob += ratio ? weight[u] * d + through[u] : weight[u] * (d + by_ratio * r);
        by_entropy -= static_cast<double>(weight[u]) * o.entropy_coef;
        found[u] = static_cast<float>(weight[u] * (loss - o.entropy_coef * h));
        found[uses + u] = static_cast<float>(k3);
        found[2 * uses + u] = low ? -1.0f : high ? 1.0f : 0.0f;
    }
    d_logprob[t] = static_cast<float>(by_logprob);
    d_entropy[t] = static_cast<float>(by_entropy);
}

// d_logits: bf16 [rows, stride], stride a multiple of 8 and at least vocab (columns beyond it: 0), by h Wᵀ:
// ((1[v = c] − p_v) dlogp − p_v (ln p_v + H) dH) / T, summed over the row's targets. cuBLASLt makes dh and dW of it.
// A chunk of the batch: hidden, target_start, max, log_sum, entropy at its first row; what is per target at its first element.
extern "C" __global__ void __launch_bounds__(256)
    grouped_logprob_grad_bf16(const bf16* __restrict__ hidden, const bf16* __restrict__ w,
                              const unsigned* __restrict__ target_start, const unsigned* __restrict__ target_token,
                              const float* __restrict__ max, const float* __restrict__ log_sum,
                              const float* __restrict__ entropy, const float* __restrict__ d_logprob,
                              const float* __restrict__ d_entropy, bf16* __restrict__ d_logits, int rows, int vocab,
                              int width, int stride, float scale) {
    constexpr int PITCH = tile::SIZE + 8;  // eight rows of a column lie in different banks
    EXPECTS(stride % 8 == 0 && stride >= vocab);
    DYNAMIC_SHARED(bf16, stages);
    const int first_row = tile::SIZE * blockIdx.x, rows_here = min(tile::SIZE, rows - first_row);
    const int first = tile::SIZE * blockIdx.y, columns_here = min(tile::SIZE, stride - first);
    EXPECTS(rows_here > 0 && columns_here > 0);
    tile::Part l;
    // A tile of padding alone has no rows of W.
    const int entries = first < vocab ? vocab - first : 0;
    tile::multiply(l, hidden + static_cast<size_t>(first_row) * width, rows_here,
                   entries > 0 ? w + static_cast<size_t>(first) * width : w, entries, width, width, stages);
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int local = tile::row(m, half), row = first_row + local;
            if (local >= rows_here) continue;
            float total = 0.0f, total_entropy = 0.0f;
            for (unsigned t = target_start[row]; t < target_start[row + 1]; ++t) {
                total += d_logprob[t];
                total_entropy += d_entropy[t];
            }
            const float top = max[row], log = log_sum[row], h = entropy[row];
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) {
                    float& x = l[m][n][2 * half + odd];
                    const float log_p = (x * scale - top) - log;
                    const float d = -__expf(log_p) * (total + total_entropy * (log_p + h));
                    x = first + tile::column(n, odd) < vocab ? d : 0.0f;
                }
            find_targets(target_start, target_token, row, first, [&](unsigned t, int at, int odd_at) {
                const float g = d_logprob[t];
#pragma unroll
                for (int n = 0; n < 4; ++n)
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd)
                        if (n == at && odd == odd_at) l[m][n][2 * half + odd] += g;
            });
#pragma unroll
            for (int n = 0; n < 4; ++n)
                *reinterpret_cast<unsigned*>(stages + local * PITCH + tile::column(n, 0)) =
                    pack_bf16(l[m][n][2 * half] * scale, l[m][n][2 * half + 1] * scale);
        }
    __syncthreads();
    for (int at = threadIdx.x; at < rows_here * (tile::SIZE / 8); at += tile::THREADS) {
        const int row = at / (tile::SIZE / 8), column = at % (tile::SIZE / 8) * 8;
        if (column < columns_here)
            store16(d_logits + static_cast<size_t>(first_row + row) * stride + first + column,
                    load16(stages + row * PITCH + column));
    }
}
