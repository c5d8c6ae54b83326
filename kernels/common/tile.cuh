// D = A · Bᵀ of one tile, 128 × 128, by a block of 256 threads: A and B are rows of bf16, `width` long and `stride`
// apart (multiples of 8).
//
// Stages of 128 + 128 rows × 32 columns go round in shared memory: two are on the way while one is multiplied. A stage keeps
// 16-byte chunk c of row r at c ^ (r / 2 % 4), so that eight rows of a chunk lie in different banks. Rows and columns that do
// not exist are zero. The 8 warps form a grid of 2 × 4, each with 64 × 32 of the product in registers.
#pragma once
#include "common/async.cuh"
#include "common/mma.cuh"

namespace tile {
constexpr int SIZE = 128, DEPTH = 32, STAGES = 3, THREADS = 256;

// A thread's part of the product, [m][n][i] at (row(m, i / 2), column(n, i % 2)).
using Part = float[4][4][4];
__device__ inline int row(int m, int half) {
    return threadIdx.x / 128 * 64 + 16 * m + 8 * half + threadIdx.x % 32 / 4;
}
__device__ inline int column(int n, int odd) { return threadIdx.x / 32 % 4 * 32 + 8 * n + 2 * (threadIdx.x % 4) + odd; }

__device__ inline int chunk_at(int row, int chunk) { return row * DEPTH + 8 * (chunk ^ (row / 2 % 4)); }

__device__ inline void load_stage(bf16* stage, const bf16* from, int rows, int width, int stride, int k) {
#pragma unroll
    for (int i = 0; i < SIZE * DEPTH / 8 / THREADS; ++i) {
        const int at = threadIdx.x + i * THREADS, row = at / 4, column = k + 8 * (at % 4);
        const bool outside = row >= rows || column >= width;
        async_copy16(stage + chunk_at(row, at % 4), outside ? from : from + static_cast<size_t>(row) * stride + column,
                     outside);
    }
}

// Every thread of the block calls together. `stages`: 48 KB of shared memory, free again when the call returns.
__device__ inline void multiply(Part& d, const bf16* a, int a_rows, const bf16* b, int b_rows, int width, int stride,
                                bf16* stages) {
    EXPECTS(width % 8 == 0 && stride % 8 == 0 && blockDim.x == THREADS);
    const int lane = threadIdx.x % 32, first_row = threadIdx.x / 128 * 64, first_column = threadIdx.x / 32 % 4 * 32;
    const int steps = (width + DEPTH - 1) / DEPTH;
    const auto load = [&](int step) {
        if (step < steps) {
            bf16* const stage = stages + step % STAGES * (2 * SIZE * DEPTH);
            load_stage(stage, a, a_rows, width, stride, step * DEPTH);
            load_stage(stage + SIZE * DEPTH, b, b_rows, width, stride, step * DEPTH);
        }
        async_commit();
    };
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) d[m][n][i] = 0.0f;
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
        async_wait<STAGES - 2>();
        __syncthreads();
        load(step + STAGES - 1);  // where step - 1 was: all warps are through with it
        const bf16* const left = stages + step % STAGES * (2 * SIZE * DEPTH);
        const bf16* const right = left + SIZE * DEPTH;
#pragma unroll
        for (int k = 0; k < DEPTH / 16; ++k) {
            unsigned x[4][4], y[2][4];
#pragma unroll
            for (int m = 0; m < 4; ++m)
                load_tiles(x[m], left + chunk_at(first_row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int n = 0; n < 2; ++n)
                load_tiles(y[n], right + chunk_at(first_column + 16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < 4; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const unsigned pair[2] = {y[n / 2][n % 2 * 2], y[n / 2][n % 2 * 2 + 1]};
                    multiply_add(d[m][n], x[m], pair);
                }
        }
    }
    async_wait<0>();
    __syncthreads();
}
}  // namespace tile
