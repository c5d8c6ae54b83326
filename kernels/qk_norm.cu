// QK-norm: RMSNorm of each head's query and key, in place, before they are rotated; values are left alone.
//
// qkv: bf16 [rows, (heads + 2 kv_heads) · head_dim]; raw, where it is not null: bf16 [rows, (heads + kv_heads) · head_dim], what the
// queries and keys were; w: bf16 [2, head_dim], of queries and of keys. head_dim: a power of two from 16 to 256.
// head_dim / 8 lanes hold a head, 8 columns each. Block: 256. Sums are f32.
//
// kernel                  grid          bytes moved                                   floor on an H100 (3.0 TB/s), 16384 rows, 16 + 8 heads of 128
// qk_norm_forward_bf16    all heads     (4 or, with raw, 6) · rows · (heads + kv_heads) · head_dim      0.067 ms, 0.101 ms
// qk_norm_backward_bf16   any, fixed    6 · rows · (heads + kv_heads) · head_dim                        0.101 ms
// Checked by emulation only.
#include "common/reduce.cuh"
#include "common/vec.cuh"

// Sum over the `lanes` neighbouring lanes that hold a head, in each of them.
__device__ inline float head_sum(float x, int lanes) {
    for (int step = 1; step < lanes; step *= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

__device__ inline float head_rstd(const float (&v)[8], int lanes, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += v[i] * v[i];
    return rsqrtf(head_sum(squares, lanes) / (8 * lanes) + eps);
}

extern "C" __global__ void __launch_bounds__(256)
    qk_norm_forward_bf16(bf16* __restrict__ qkv, bf16* __restrict__ raw, const bf16* __restrict__ w, int rows, int heads,
                         int kv_heads, int head_dim, float eps) {
    EXPECTS(head_dim % 16 == 0 && head_dim <= 256 && blockDim.x == 256);
    const int lanes = head_dim / 8, normed = heads + kv_heads, column = 8 * (threadIdx.x % lanes);
    const int item = (blockIdx.x * 256 + threadIdx.x) / lanes, row = item / normed, head = item % normed;
    const bool inside = row < rows;
    bf16* const at = qkv + (static_cast<size_t>(row) * (normed + kv_heads) + head) * head_dim + column;
    float v[8] = {}, gain[8] = {};
    if (inside) {
        load8(at, v);
        load8(w + (head < heads ? 0 : head_dim) + column, gain);
        if (raw != nullptr) store8(raw + static_cast<size_t>(item) * head_dim + column, v);
    }
    const float r = head_rstd(v, lanes, eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = gain[i] * (v[i] * r);
    if (inside) store8(at, v);
}

// With c = mean(dy · w · x): dy becomes r · (w · dy − x · r² · c); dw_partial f32 [grid, 2, head_dim] = Σ dy · x · r over the block's
// heads, each thread's in order, then the threads'. rmsnorm_backward_dw_* adds the blocks up.
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_backward_bf16(bf16* __restrict__ d_qkv, const bf16* __restrict__ raw, const bf16* __restrict__ w,
                          float* __restrict__ dw_partial, int rows, int heads, int kv_heads, int head_dim, float eps) {
    EXPECTS(head_dim % 16 == 0 && head_dim <= 256 && blockDim.x == 256);
    // Neither what is written nor what is read together meets in a bank.
    constexpr int PITCH = 256 + 4;
    SHARED(float, sums, 16 * PITCH);
    const int lanes = head_dim / 8, normed = heads + kv_heads, column = 8 * (threadIdx.x % lanes);
    const int groups = 256 / lanes, group = threadIdx.x / lanes, items = rows * normed;
    float dw[2][8] = {};
    for (int first = blockIdx.x * groups; first < items; first += gridDim.x * groups) {
        const int item = first + group, row = item / normed, head = item % normed;
        const bool inside = item < items;
        bf16* const at = d_qkv + (static_cast<size_t>(row) * (normed + kv_heads) + head) * head_dim + column;
        float g[8] = {}, v[8] = {}, gain[8] = {};
        if (inside) {
            load8(at, g);
            load8(raw + static_cast<size_t>(item) * head_dim + column, v);
            load8(w + (head < heads ? 0 : head_dim) + column, gain);
        }
        const float r = head_rstd(v, lanes, eps);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) dot += g[i] * gain[i] * v[i];
        const float c = head_sum(dot, lanes) / head_dim * r * r;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float d = inside ? g[i] * v[i] * r : 0.0f;
            dw[0][i] += head < heads ? d : 0.0f;
            dw[1][i] += head < heads ? 0.0f : d;
            g[i] = r * (gain[i] * g[i] - v[i] * c);
        }
        if (inside) store8(at, g);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        sums[i * PITCH + threadIdx.x] = dw[0][i];
        sums[(8 + i) * PITCH + threadIdx.x] = dw[1][i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < 2 * head_dim; at += 256) {
        const float* const own = sums + (at / head_dim * 8 + at % 8) * PITCH + at % head_dim / 8;
        float sum = 0.0f;
        for (int of = 0; of < groups; ++of) sum += own[of * lanes];
        dw_partial[static_cast<size_t>(blockIdx.x) * 2 * head_dim + at] = sum;
    }
}
