// Causal grouped-query attention over a forest: o_i = Σ_j softmax_j(q_i·k_j · scale) v_j over the keys j ≤ i < reach[j].
//
// qkv: bf16 [tokens, (heads + 2 kv_heads) · D], rotated; reach: u32 [tokens]; tiles: u32 [2, tokens / 64 rounded up], the least
// reach of each tile of 64 keys, then the greatest; o: bf16 [tokens, heads · D]; softmax: f32 [tokens, heads, 2], each row's
// maximum (of scaled scores) and the inverse of its sum, for the backward pass. No [tokens, tokens] exists.
//
// attention_forward_hd{64,128}_bf16: grid (heads, tokens / 128 rounded up), block 256, dynamic shared memory 768 · D bytes. A warp
// has 16 queries, whose scores, probabilities and sums stay in registers; tiles of 64 keys and values come by asynchronous copies,
// one ahead. A tile that no query sees is never loaded, one that all see whole is not masked. The latest queries, which see the
// most, start first.
// Flops: 4 · D · heads for each visible (query, key). Floor on an H100 (800 TFLOP/s), one sequence of 8192, 16 heads of 128:
// 0.34 ms. Checked by emulation only.
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/vec.cuh"

namespace {
constexpr int QUERIES = 128, KEYS = 64, THREADS = 256;
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
    for (int at = threadIdx.x; at < count * (D / 8); at += THREADS) {
        const int row = at / (D / 8), chunk = at % (D / 8);
        const bool outside = first + row >= tokens;
        async_copy16(to + chunk_at<D>(row, chunk),
                     outside ? from : from + static_cast<size_t>(first + row) * row_len + 8 * chunk, outside);
    }
}

// Over the four lanes that share a row.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

template <int D>
__device__ inline void forward(const bf16* qkv, const unsigned* reach, const unsigned* tiles, bf16* o, float* softmax,
                               int tokens, int heads, int kv_heads, float scale) {
    EXPECTS(heads % kv_heads == 0 && blockDim.x == THREADS);
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
            for (int k = 0; k < D / 16; ++k)
                load_tiles(q[k], q_rows + chunk_at<D>(16 * warp + lane % 16, 2 * k + lane / 16));
        const bf16* const k_rows = stage(turn);
        const bf16* const v_rows = k_rows + KEYS * D;

        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; ++k)
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                unsigned y[4];
                load_tiles(y, k_rows + chunk_at<D>(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
                const unsigned low[2] = {y[0], y[1]}, high[2] = {y[2], y[3]};
                multiply_add(s[2 * n], q[k], low);
                multiply_add(s[2 * n + 1], q[k], high);
            }
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
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            const unsigned p[4] = {pack_bf16(s[2 * k][0], s[2 * k][1]), pack_bf16(s[2 * k][2], s[2 * k][3]),
                                   pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]),
                                   pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                unsigned y[4];
                load_tiles<true>(y, v_rows + chunk_at<D>(16 * k + lane % 16, 2 * d + lane / 16));
                const unsigned low[2] = {y[0], y[1]}, high[2] = {y[2], y[3]};
                multiply_add(sum_v[2 * d], p, low);
                multiply_add(sum_v[2 * d + 1], p, high);
            }
        }
        __syncthreads();  // before the stage is loaded again
        tile = following;
        first = false;
    }
    async_wait<0>();

    // Through the warp's own rows of q_rows, for 16-byte stores.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float inverse = 1.0f / row_sum(sum[half]);
        const int local = 16 * warp + lane / 4 + 8 * half, query = q0 + local;
#pragma unroll
        for (int d = 0; d < D / 8; ++d)
            *reinterpret_cast<unsigned*>(q_rows + chunk_at<D>(local, d) + 2 * (lane % 4)) =
                pack_bf16(sum_v[d][2 * half] * inverse, sum_v[d][2 * half + 1] * inverse);
        if (lane % 4 == 0 && query < tokens) {
            float* const kept = softmax + 2 * (static_cast<size_t>(query) * heads + head);
            kept[0] = max[half];
            kept[1] = inverse;
        }
    }
    __syncwarp();
    for (int at = lane; at < 16 * (D / 8); at += 32) {
        const int local = 16 * warp + at / (D / 8), chunk = at % (D / 8), query = q0 + local;
        if (query < tokens)
            store16(o + (static_cast<size_t>(query) * heads + head) * D + 8 * chunk,
                    load16(q_rows + chunk_at<D>(local, chunk)));
    }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(256, 1)
    attention_forward_hd64_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ reach,
                                const unsigned* __restrict__ tiles, bf16* __restrict__ o, float* __restrict__ softmax,
                                int tokens, int heads, int kv_heads, float scale) {
    forward<64>(qkv, reach, tiles, o, softmax, tokens, heads, kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(256, 1)
    attention_forward_hd128_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ reach,
                                 const unsigned* __restrict__ tiles, bf16* __restrict__ o, float* __restrict__ softmax,
                                 int tokens, int heads, int kv_heads, float scale) {
    forward<128>(qkv, reach, tiles, o, softmax, tokens, heads, kv_heads, scale);
}
