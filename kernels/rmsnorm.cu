// RMSNorm: y = w · x · r with r = 1 / sqrt(mean(x²) + eps), per row. The rows are the tokens.
//
// x, y, dy, dx: bf16 [rows, hidden]; w: bf16 [hidden]; rstd (r, kept for the backward pass): f32 [rows].
// hidden: a multiple of 8, at most 8192. Block: hidden / 8 threads rounded up to whole warps; a thread holds 8 columns in
// registers, so a row is read once. Sums are f32.
//
// kernel                     grid         bytes moved                            floor on an H100 (3.0 TB/s), 16384 × 2048
// rmsnorm_forward_bf16       rows         rows · (4 hidden + 4)                  0.045 ms
// rmsnorm_forward_add_bf16   rows         rows · (8 hidden + 4)                  0.089 ms
// rmsnorm_backward_bf16      any, fixed   rows · (8 hidden + 4) + 4 grid · hidden   0.090 ms (grid 264)
// rmsnorm_backward_dw_*      hidden / 64 rounded up   4 grid · hidden            1 µs
// Checked by emulation only.
#include "common/reduce.cuh"
#include "common/vec.cuh"

// With ADD: sum = x + delta, rounded to bf16, is stored and normalised; `sum` may be `x`.
template <bool ADD>
__device__ inline void forward(const bf16* x, const bf16* delta, const bf16* w, bf16* sum, bf16* y, float* rstd,
                               int hidden, float eps) {
    EXPECTS(hidden % 8 == 0 && hidden <= 8 * static_cast<int>(blockDim.x));
    const int column = 8 * threadIdx.x;
    const size_t at = static_cast<size_t>(blockIdx.x) * hidden + column;
    const bool inside = column < hidden;
    float v[8] = {}, gain[8] = {};
    if (inside) {
        load8(x + at, v);
        load8(w + column, gain);
        if constexpr (ADD) {
            float d[8];
            load8(delta + at, d);
#pragma unroll
            for (int i = 0; i < 8; ++i) v[i] = to_float(to_bf16(v[i] + d[i]));
            store8(sum + at, v);
        }
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += v[i] * v[i];
    const float r = rsqrtf(block_sum(squares) / hidden + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    if (inside) {
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = gain[i] * (v[i] * r);
        store8(y + at, v);
    }
}

extern "C" __global__ void __launch_bounds__(1024)
    rmsnorm_forward_bf16(const bf16* __restrict__ x, const bf16* __restrict__ w, bf16* __restrict__ y,
                         float* __restrict__ rstd, int hidden, float eps) {
    forward<false>(x, nullptr, w, nullptr, y, rstd, hidden, eps);
}

// The residual connection with the norm that follows it.
extern "C" __global__ void __launch_bounds__(1024)
    rmsnorm_forward_add_bf16(const bf16* x, const bf16* __restrict__ delta, const bf16* __restrict__ w, bf16* sum,
                             bf16* __restrict__ y, float* __restrict__ rstd, int hidden, float eps) {
    forward<true>(x, delta, w, sum, y, rstd, hidden, eps);
}

// With c = mean(dy · w · x): dx += r · (w · dy − x · r² · c), where dx comes in with the gradient that flows past the norm;
// dw_partial f32 [grid, hidden] = Σ dy · x · r over the block's rows, in order: row blockIdx, blockIdx + grid, …
extern "C" __global__ void __launch_bounds__(1024)
    rmsnorm_backward_bf16(const bf16* __restrict__ dy, const bf16* __restrict__ x, const bf16* __restrict__ w,
                          const float* __restrict__ rstd, bf16* __restrict__ dx, float* __restrict__ dw_partial, int rows,
                          int hidden) {
    EXPECTS(hidden % 8 == 0 && hidden <= 8 * static_cast<int>(blockDim.x));
    const int column = 8 * threadIdx.x;
    const bool inside = column < hidden;
    float gain[8] = {}, dw[8] = {};
    if (inside) load8(w + column, gain);
    int turn = 0;
    for (int row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
        const size_t at = static_cast<size_t>(row) * hidden + column;
        const float r = rstd[row];
        float g[8] = {}, v[8] = {}, d[8] = {};
        if (inside) {
            load8(dy + at, g);
            load8(x + at, v);
            load8(dx + at, d);
        }
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) dot += g[i] * gain[i] * v[i];
        const float c = block_sum(dot, turn) / hidden * r * r;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            d[i] += r * (gain[i] * g[i] - v[i] * c);
            dw[i] += g[i] * v[i] * r;
        }
        if (inside) store8(dx + at, d);
    }
    if (inside) store8(dw_partial + static_cast<size_t>(blockIdx.x) * hidden + column, dw);
}

// dw [hidden] += Σ_b partial [blocks, hidden], in a fixed order. Block (8, 32): 64 columns, 32 interleaved sets of rows.
template <class T>
__device__ inline void reduce_dw(const float* partial, T* dw, int blocks, int hidden) {
    EXPECTS(hidden % 8 == 0 && blockDim.x == 8 && blockDim.y == 32);
    SHARED(float, sums, 8 * 32 * 8);  // a thread's 8 apart, neighbours side by side: no two lanes in one bank
    const int column = 64 * blockIdx.x + 8 * threadIdx.x;
    const bool inside = column < hidden;
    float sum[8] = {};
    for (int b = threadIdx.y; inside && b < blocks; b += 32) {
        float p[8];
        load8(partial + static_cast<size_t>(b) * hidden + column, p);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += p[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[256 * i + 8 * threadIdx.y + threadIdx.x] = sum[i];
    __syncthreads();
    if (threadIdx.y > 0 || !inside) return;
    float d[8];
    load8(dw + column, d);
    for (int y = 0; y < 32; ++y) {
#pragma unroll
        for (int i = 0; i < 8; ++i) d[i] += sums[256 * i + 8 * y + threadIdx.x];
    }
    store8(dw + column, d);
}

extern "C" __global__ void __launch_bounds__(256)
    rmsnorm_backward_dw_bf16(const float* __restrict__ partial, bf16* __restrict__ dw, int blocks, int hidden) {
    reduce_dw(partial, dw, blocks, hidden);
}

extern "C" __global__ void __launch_bounds__(256)
    rmsnorm_backward_dw_f32(const float* __restrict__ partial, float* __restrict__ dw, int blocks, int hidden) {
    reduce_dw(partial, dw, blocks, hidden);
}
