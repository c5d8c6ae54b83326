// Sums over a warp, a part of it or a block: the same tree whatever the schedule, so the same bits every time.
#pragma once
#include "common/target.cuh"
#include "common/vec.cuh"

// Sum over the 32 lanes, in every lane.
template <class T>
__device__ inline T warp_sum(T x WHERE) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step, 32 HERE);
    return x;
}

// Over the four lanes that share a row of a product's fragment.
__device__ inline float row_max(float x WHERE) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1, 32 HERE));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2, 32 HERE));
}
__device__ inline float row_sum(float x WHERE) {
    x += __shfl_xor_sync(~0u, x, 1, 32 HERE);
    return x + __shfl_xor_sync(~0u, x, 2, 32 HERE);
}

// Dot product of two rows of 8 LANES elements, in every lane of a row. A lane's 8 begin at 8 `at`; a row that does not exist is 0.
template <int LANES>
__device__ inline float row_dot(const bf16* a, const bf16* b, int at, bool exists WHERE) {
    float sum = 0.0f;
    if (exists) {
        float x[8], y[8];
        load8(a + static_cast<size_t>(at) * 8, x);
        load8(b + static_cast<size_t>(at) * 8, y);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += x[i] * y[i];
    }
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) sum += __shfl_xor_sync(~0u, sum, step, 32 HERE);
    return sum;
}

// Sum over a one-dimensional block of whole warps, in every thread. A kernel that calls this repeatedly passes 0, 1, 0, 1, …
// as `turn`: with two sets of partial sums, one barrier a call keeps the late readers of one apart from the writers of the next.
template <class T>
__device__ inline T block_sum(T x, int turn = 0 WHERE) {
    SHARED(T, partial, 2 * 32);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x HERE);
    if (lane == 0) partial[turn * 32 + warp] = x;
    __syncthreads(HERE_ALONE);
    return warp_sum(lane < warps ? partial[turn * 32 + lane] : T(0) HERE);
}
