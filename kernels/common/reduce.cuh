// Sums over a warp, a part of it or a block: the same tree whatever the schedule, so the same bits every time.
#pragma once
#include "common/target.cuh"

// Sum over the 32 lanes, in every lane.
template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

// Over the four lanes that share a row of a product's fragment.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// Sum over a one-dimensional block of whole warps, in every thread. A kernel that calls this repeatedly passes 0, 1, 0, 1, …
// as `turn`: with two sets of partial sums, one barrier a call keeps the late readers of one apart from the writers of the next.
template <class T>
__device__ inline T block_sum(T x, int turn = 0) {
    SHARED(T, partial, 2 * 32);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    if (lane == 0) partial[turn * 32 + warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? partial[turn * 32 + lane] : T(0));
}
