// Causal grouped-query attention over a forest: o_i = Σ_j softmax_j(q_i·k_j · scale) v_j over the keys j ≤ i < reach[j].
//
// qkv: bf16 [tokens, (heads + 2 kv_heads) · D], rotated; reach: u32 [tokens]; tiles: u32 [2, tokens / 64 rounded up], the least
// reach of each tile of 64 keys, then the greatest; o: bf16 [tokens, heads · D]; softmax: f32 [tokens, heads, 2], each row's
// maximum (of scaled scores) and the inverse of its sum, for the backward pass. No [tokens, tokens] exists.
// Backward, with P = softmax, dP_ij = do_i·v_j, dS_ij = P_ij (dP_ij − delta_i) · scale and delta_i = do_i·o_i:
// dv_j = Σ_i P_ij do_i, dk_j = Σ_i dS_ij q_i, dq_i = Σ_j dS_ij k_j; d_o as o, d_qkv as qkv, delta: f32 [tokens, heads].
// P is computed again from the statistics. Every sum has one owner and one order: no atomics, the same bits every time.
//
// kernel (D = 64, 128)                  grid (quotients rounded up)        block  shared         flops a visible pair, or bytes
// attention_forward_hdD_bf16            (heads, tokens / 128)              256    768 D          4 D heads
// attention_backward_delta_hdD_bf16     tokens · heads · D / 2048          256    0              4 D + 4 a row
// attention_backward_kv_hdD_bf16        (kv_heads, tokens / 64)            128    768 D + 1536   8 D heads
// attention_backward_q_hdD_bf16         (heads, tokens / 64)               128    768 D          6 D heads
// A warp has 16 queries (or keys), whose scores and sums stay in registers; the tiles of 64 that it meets come by asynchronous
// copies, one ahead. A tile that nobody sees is never loaded, one that all see whole is not masked. What has the most to do
// starts first. All query heads of a kv head pass through one block of the kv kernel, so that their sum needs no second pass.
//
// Floor on an H100 (800 TFLOP/s), one sequence of 8192, 16 heads of 128: forward 0.34 ms; backward 0.86 ms for the five products
// it takes, 1.2 ms for the seven that separate owners make of them. Checked by emulation only.
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace {
constexpr int QUERIES = 128, KEYS = 64, ROWS = 64;
// Below any score, yet finite.
constexpr float LOWEST = -1e30f;

// Where 16-byte chunk c of a row lies: eight rows of a chunk are in different banks.
template <int D>
__device__ inline int chunk_at(int row, int chunk) {
    return row * D + 8 * (chunk ^ (row % 8));
}

// `count` rows from `first` on, zero beyond the tokens.
template <int D>
__device__ inline void load_rows(bf16* to, const bf16* from, int row_len, int first, int count, int tokens) {
    for (int at = threadIdx.x; at < count * (D / 8); at += blockDim.x) {
        const int row = at / (D / 8), chunk = at % (D / 8);
        const bool outside = first + row >= tokens;
        async_copy16(to + chunk_at<D>(row, chunk),
                     outside ? from : from + static_cast<size_t>(first + row) * row_len + 8 * chunk, outside);
    }
}

// The 16 × 16 tile k of a warp's 16 rows.
template <int D>
__device__ inline void load_fragment(unsigned (&a)[4], const bf16* rows, int k) {
    const int lane = threadIdx.x % 32;
    load_tiles(a, rows + chunk_at<D>(threadIdx.x / 32 * 16 + lane % 16, 2 * k + lane / 16));
}

// s (16 × 8 N) += A · Bᵀ over the columns of tile k; B: 8 N rows.
template <int D, int N>
__device__ inline void add_scores(float (&s)[N][4], const unsigned (&a)[4], const bf16* b, int k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N / 2; ++n) {
        unsigned y[4];
        load_tiles(y, b + chunk_at<D>(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
        const unsigned low[2] = {y[0], y[1]}, high[2] = {y[2], y[3]};
        multiply_add(s[2 * n], a, low);
        multiply_add(s[2 * n + 1], a, high);
    }
}

// sum (16 × D) += P (16 × 8 N, rounded to bf16) · V, 8 N rows.
template <int D, int N>
__device__ inline void add_weighted(float (&sum)[D / 8][4], const float (&p)[N][4], const bf16* v) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
        const unsigned a[4] = {pack_bf16(p[2 * k][0], p[2 * k][1]), pack_bf16(p[2 * k][2], p[2 * k][3]),
                               pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]), pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            unsigned y[4];
            load_tiles<true>(y, v + chunk_at<D>(16 * k + lane % 16, 2 * d + lane / 16));
            const unsigned low[2] = {y[0], y[1]}, high[2] = {y[2], y[3]};
            multiply_add(sum[2 * d], a, low);
            multiply_add(sum[2 * d + 1], a, high);
        }
    }
}

// A warp's 16 rows, scaled by half, to `to` by way of its own part of `rows`, for 16-byte stores.
template <int D>
__device__ inline void store_rows(bf16* to, size_t row_len, bf16* rows, const float (&sum)[D / 8][4],
                                  const float (&scale)[2], int first, int tokens) {
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int d = 0; d < D / 8; ++d)
            *reinterpret_cast<unsigned*>(rows + chunk_at<D>(warp_row + lane / 4 + 8 * half, d) + 2 * (lane % 4)) =
                pack_bf16(sum[d][2 * half] * scale[half], sum[d][2 * half + 1] * scale[half]);
    __syncwarp();
    for (int at = lane; at < 16 * (D / 8); at += 32) {
        const int row = warp_row + at / (D / 8), chunk = at % (D / 8);
        if (first + row < tokens)
            store16(to + (first + row) * row_len + 8 * chunk, load16(rows + chunk_at<D>(row, chunk)));
    }
}

template <int D>
__device__ inline void forward(const bf16* qkv, const unsigned* reach, const unsigned* tiles, bf16* o, float* softmax,
                               int tokens, int heads, int kv_heads, float scale) {
    EXPECTS(heads % kv_heads == 0 && blockDim.x == 2 * QUERIES);
    DYNAMIC_SHARED(bf16, shared);
    bf16* const q_rows = shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x;
    const int q0 = QUERIES * (gridDim.y - 1 - blockIdx.y), q1 = min(q0 + QUERIES, tokens);
    const int row_len = (heads + 2 * kv_heads) * D, kv_head = head / (heads / kv_heads);
    const bf16* const keys = qkv + (heads + kv_head) * D;
    const bf16* const values = keys + kv_heads * D;
    const int count = (tokens + KEYS - 1) / KEYS, last = (q1 + KEYS - 1) / KEYS;
    const auto next = [&](int tile) {
        while (tile < last && tiles[count + tile] <= static_cast<unsigned>(q0)) ++tile;
        return tile;
    };
    const auto stage = [&](int turn) { return shared + QUERIES * D + turn * (2 * KEYS * D); };
    const auto load = [&](int tile, int turn) {
        if (tile < last) {
            load_rows<D>(stage(turn), keys, row_len, tile * KEYS, KEYS, tokens);
            load_rows<D>(stage(turn) + KEYS * D, values, row_len, tile * KEYS, KEYS, tokens);
        }
        async_commit();
    };

    int tile = next(0);
    load_rows<D>(q_rows, qkv + head * D, row_len, q0, QUERIES, tokens);
    load(tile, 0);
    unsigned q[D / 16][4];
    float sum_v[D / 8][4] = {}, max[2] = {LOWEST, LOWEST}, sum[2] = {};
    const int row = q0 + 16 * warp + lane / 4;
    bool first = true;
    for (int turn = 0; tile < last; turn ^= 1) {
        const int following = next(tile + 1), k0 = tile * KEYS;
        load(following, turn ^ 1);
        async_wait<1>();
        __syncthreads();
        if (first)
#pragma unroll
            for (int k = 0; k < D / 16; ++k) load_fragment<D>(q[k], q_rows, k);

        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; ++k) add_scores<D>(s, q[k], stage(turn), k);
        const bool whole = k0 + KEYS - 1 <= q0 && tiles[tile] >= static_cast<unsigned>(q1);
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                const int key = k0 + 8 * n + 2 * (lane % 4) + odd;
                const int end = whole ? tokens : key < tokens ? static_cast<int>(reach[key]) : 0;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int query = row + 8 * half;
                    float& x = s[n][2 * half + odd];
                    x = whole || (key <= query && query < end) ? x * scale : -INFINITY;
                }
            }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = max[half], total = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            top = row_max(top);
            const float keep = __expf(max[half] - top);
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) total += s[n][2 * half + odd] = __expf(s[n][2 * half + odd] - top);
            max[half] = top;
            sum[half] = sum[half] * keep + total;
#pragma unroll
            for (int d = 0; d < D / 8; ++d) {
                sum_v[d][2 * half] *= keep;
                sum_v[d][2 * half + 1] *= keep;
            }
        }
        add_weighted<D>(sum_v, s, stage(turn) + KEYS * D);
        __syncthreads();  // before the stage is loaded again
        tile = following;
        first = false;
    }
    async_wait<0>();

    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        inverse[half] = 1.0f / row_sum(sum[half]);
        const int query = row + 8 * half;
        if (lane % 4 == 0 && query < tokens) {
            float* const kept = softmax + 2 * (static_cast<size_t>(query) * heads + head);
            kept[0] = max[half];
            kept[1] = inverse[half];
        }
    }
    store_rows<D>(o + head * D, static_cast<size_t>(heads) * D, q_rows, sum_v, inverse, q0, tokens);
}

// A row's chunk of 8 columns for each thread.
template <int D>
__device__ inline void backward_delta(const bf16* d_o, const bf16* o, float* delta, int rows) {
    constexpr int LANES = D / 8;
    const int at = blockDim.x * blockIdx.x + threadIdx.x, row = at / LANES;
    const float sum = row_dot<LANES>(d_o, o, at, row < rows);
    if (row < rows && at % LANES == 0) delta[row] = sum;
}

// What a query's row of P and dS is computed from; a query that does not exist has no weight.
struct Row {
    float max, inverse, delta;
};
__device__ inline Row load_row(const float* softmax, const float* delta, int query, int tokens, int heads, int head) {
    if (query >= tokens) return {0.0f, 0.0f, 0.0f};
    const size_t at = static_cast<size_t>(query) * heads + head;
    return {softmax[2 * at], softmax[2 * at + 1], delta[at]};
}

// P from a score, and dS from P and dP.
__device__ inline float probability(float score, bool visible, float scale, const Row& row) {
    return visible ? __expf(score * scale - row.max) * row.inverse : 0.0f;
}

// 64 keys and all the queries that see them: a warp has 16 keys.
template <int D>
__device__ inline void backward_kv(const bf16* d_o, const bf16* qkv, const float* softmax, const float* delta,
                                   const unsigned* reach, const unsigned* tiles, bf16* d_qkv, int tokens, int heads,
                                   int kv_heads, float scale) {
    EXPECTS(heads % kv_heads == 0 && blockDim.x == 2 * ROWS);
    DYNAMIC_SHARED(bf16, shared);
    bf16* const k_rows = shared;
    bf16* const v_rows = shared + KEYS * D;
    Row* const rows = reinterpret_cast<Row*>(shared + 6 * ROWS * D);  // [2, 64]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.x, group = heads / kv_heads;
    const int k0 = KEYS * blockIdx.y, count = (tokens + KEYS - 1) / KEYS;
    const int row_len = (heads + 2 * kv_heads) * D, o_len = heads * D;
    const int least = tiles[blockIdx.y], greatest = tiles[count + blockIdx.y];
    const int first = k0 / ROWS, of_head = (greatest + ROWS - 1) / ROWS - first, steps = group * of_head;
    const auto stage = [&](int turn) { return shared + 2 * (1 + turn) * ROWS * D; };
    const auto load = [&](int step) {
        if (step < steps) {
            const int head = kv_head * group + step / of_head, q0 = ROWS * (first + step % of_head), turn = step % 2;
            load_rows<D>(stage(turn), qkv + head * D, row_len, q0, ROWS, tokens);
            load_rows<D>(stage(turn) + ROWS * D, d_o + head * D, o_len, q0, ROWS, tokens);
            if (threadIdx.x < ROWS)
                rows[turn * ROWS + threadIdx.x] = load_row(softmax, delta, q0 + threadIdx.x, tokens, heads, head);
        }
        async_commit();
    };
    load_rows<D>(k_rows, qkv + (heads + kv_head) * D, row_len, k0, KEYS, tokens);
    load_rows<D>(v_rows, qkv + (heads + kv_heads + kv_head) * D, row_len, k0, KEYS, tokens);
    load(0);
    int end[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int key = k0 + 16 * warp + lane / 4 + 8 * half;
        end[half] = key < tokens ? static_cast<int>(reach[key]) : 0;
    }
    float d_k[D / 8][4] = {}, d_v[D / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
        load(step + 1);
        async_wait<1>();
        __syncthreads();
        const bf16* const q_rows = stage(step % 2);
        const bf16* const do_rows = q_rows + ROWS * D;
        const Row* const row = rows + step % 2 * ROWS;
        const int q0 = ROWS * (first + step % of_head);
        const bool whole = k0 + KEYS - 1 <= q0 && least >= min(q0 + ROWS, tokens);
        // So many queries at a time that all sums fit in registers.
        constexpr int COLUMNS = D == 128 ? 32 : 64;
#pragma unroll 1
        for (int c = 0; c < ROWS; c += COLUMNS) {
            float p[COLUMNS / 8][4] = {}, d_s[COLUMNS / 8][4] = {};
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
                unsigned a[4];
                load_fragment<D>(a, k_rows, k);
                add_scores<D>(p, a, q_rows + c * D, k);
                load_fragment<D>(a, v_rows, k);
                add_scores<D>(d_s, a, do_rows + c * D, k);
            }
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                for (int odd = 0; odd < 2; ++odd) {
                    const int column = c + 8 * n + 2 * (lane % 4) + odd, query = q0 + column;
                    const Row of = row[column];
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int key = k0 + 16 * warp + lane / 4 + 8 * half;
                        float& x = p[n][2 * half + odd];
                        float& d = d_s[n][2 * half + odd];
                        x = probability(x, whole || (key <= query && query < end[half]), scale, of);
                        d = x * (d - of.delta);
                    }
                }
            add_weighted<D>(d_v, p, do_rows + c * D);
            add_weighted<D>(d_k, d_s, q_rows + c * D);
        }
        __syncthreads();  // before the stage is loaded again
    }
    async_wait<0>();
    __syncthreads();
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
    store_rows<D>(d_qkv + (heads + kv_head) * D, row_len, k_rows, d_k, scales, k0, tokens);
    store_rows<D>(d_qkv + (heads + kv_heads + kv_head) * D, row_len, v_rows, d_v, ones, k0, tokens);
}

// 64 queries of a head and all the keys they see: a warp has 16 queries.
template <int D>
__device__ inline void backward_q(const bf16* d_o, const bf16* qkv, const float* softmax, const float* delta,
                                  const unsigned* reach, const unsigned* tiles, bf16* d_qkv, int tokens, int heads,
                                  int kv_heads, float scale) {
    EXPECTS(heads % kv_heads == 0 && blockDim.x == 2 * ROWS);
    DYNAMIC_SHARED(bf16, shared);
    bf16* const q_rows = shared;
    bf16* const do_rows = shared + ROWS * D;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x, kv_head = head / (heads / kv_heads);
    const int q0 = ROWS * (gridDim.y - 1 - blockIdx.y), q1 = min(q0 + ROWS, tokens);
    const int row_len = (heads + 2 * kv_heads) * D;
    const bf16* const keys = qkv + (heads + kv_head) * D;
    const bf16* const values = keys + kv_heads * D;
    const int count = (tokens + KEYS - 1) / KEYS, last = (q1 + KEYS - 1) / KEYS;
    const auto next = [&](int tile) {
        while (tile < last && tiles[count + tile] <= static_cast<unsigned>(q0)) ++tile;
        return tile;
    };
    const auto stage = [&](int turn) { return shared + 2 * (1 + turn) * ROWS * D; };
    const auto load = [&](int tile, int turn) {
        if (tile < last) {
            load_rows<D>(stage(turn), keys, row_len, tile * KEYS, KEYS, tokens);
            load_rows<D>(stage(turn) + KEYS * D, values, row_len, tile * KEYS, KEYS, tokens);
        }
        async_commit();
    };
    int tile = next(0);
    load_rows<D>(q_rows, qkv + head * D, row_len, q0, ROWS, tokens);
    load_rows<D>(do_rows, d_o + head * D, heads * D, q0, ROWS, tokens);
    load(tile, 0);
    const int query = q0 + 16 * warp + lane / 4;
    const Row row[2] = {load_row(softmax, delta, query, tokens, heads, head),
                        load_row(softmax, delta, query + 8, tokens, heads, head)};
    float d_q[D / 8][4] = {};
    for (int turn = 0; tile < last; turn ^= 1) {
        const int following = next(tile + 1), k0 = tile * KEYS;
        load(following, turn ^ 1);
        async_wait<1>();
        __syncthreads();
        const bf16* const k_rows = stage(turn);
        const bf16* const v_rows = k_rows + KEYS * D;
        const bool whole = k0 + KEYS - 1 <= q0 && tiles[tile] >= static_cast<unsigned>(q1);
        float d_s[KEYS / 8][4] = {}, d_p[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            unsigned a[4];
            load_fragment<D>(a, q_rows, k);
            add_scores<D>(d_s, a, k_rows, k);
            load_fragment<D>(a, do_rows, k);
            add_scores<D>(d_p, a, v_rows, k);
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                const int key = k0 + 8 * n + 2 * (lane % 4) + odd;
                const int end = whole ? tokens : key < tokens ? static_cast<int>(reach[key]) : 0;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int at = query + 8 * half;
                    const bool visible = whole || (key <= at && at < end);
                    float& x = d_s[n][2 * half + odd];
                    x = probability(x, visible, scale, row[half]) * (d_p[n][2 * half + odd] - row[half].delta);
                }
            }
        add_weighted<D>(d_q, d_s, k_rows);
        __syncthreads();  // before the stage is loaded again
        tile = following;
    }
    async_wait<0>();
    __syncthreads();
    const float scales[2] = {scale, scale};
    store_rows<D>(d_qkv + head * D, row_len, q_rows, d_q, scales, q0, tokens);
}
}  // namespace

extern "C" __global__ void __launch_bounds__(256, 1)
    attention_forward_hd64_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ reach,
                                const unsigned* __restrict__ tiles, bf16* __restrict__ o,
                                float* __restrict__ softmax, int tokens, int heads, int kv_heads, float scale) {
    forward<64>(qkv, reach, tiles, o, softmax, tokens, heads, kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(256, 1)
    attention_forward_hd128_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ reach,
                                 const unsigned* __restrict__ tiles, bf16* __restrict__ o,
                                 float* __restrict__ softmax, int tokens, int heads, int kv_heads, float scale) {
    forward<128>(qkv, reach, tiles, o, softmax, tokens, heads, kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(256)
    attention_backward_delta_hd64_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ o,
                                       float* __restrict__ delta, int rows) {
    backward_delta<64>(d_o, o, delta, rows);
}

extern "C" __global__ void __launch_bounds__(256)
    attention_backward_delta_hd128_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ o,
                                        float* __restrict__ delta, int rows) {
    backward_delta<128>(d_o, o, delta, rows);
}

extern "C" __global__ void __launch_bounds__(128, 1)
    attention_backward_kv_hd64_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ qkv,
                                    const float* __restrict__ softmax, const float* __restrict__ delta,
                                    const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles,
                                    bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_kv<64>(d_o, qkv, softmax, delta, reach, tiles, d_qkv, tokens, heads, kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(128, 1)
    attention_backward_kv_hd128_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ qkv,
                                     const float* __restrict__ softmax, const float* __restrict__ delta,
                                     const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles,
                                     bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_kv<128>(d_o, qkv, softmax, delta, reach, tiles, d_qkv, tokens, heads, kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(128, 1)
    attention_backward_q_hd64_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ qkv,
                                   const float* __restrict__ softmax, const float* __restrict__ delta,
                                   const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles,
                                   bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_q<64>(d_o, qkv, softmax, delta, reach, tiles, d_qkv, tokens, heads, kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(128, 1)
    attention_backward_q_hd128_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ qkv,
                                    const float* __restrict__ softmax, const float* __restrict__ delta,
                                    const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles,
                                    bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_q<128>(d_o, qkv, softmax, delta, reach, tiles, d_qkv, tokens, heads, kv_heads, scale);
}
