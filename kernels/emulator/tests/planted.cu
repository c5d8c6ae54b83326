// Kernels with planted mistakes, for the emulator's own tests, and a sound one beside each.
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

extern "C" __global__ void planted_copy(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}

// Each block reverses its part of x; without the barrier a thread may read what no one has written yet.
template <bool BARRIER>
__device__ inline void reverse(const float* x, float* y) {
    DYNAMIC_SHARED(float, tile);
    const int base = blockIdx.x * blockDim.x;
    tile[threadIdx.x] = x[base + threadIdx.x];
    if (BARRIER) __syncthreads();
    y[base + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void planted_reverse(const float* x, float* y) { reverse<true>(x, y); }
extern "C" __global__ void planted_reverse_race(const float* x, float* y) { reverse<false>(x, y); }

// Three sums in a row. Without alternating turns, warp 0 overwrites partial sums that slower warps have yet to read.
template <bool ALTERNATE>
__device__ inline void sums(const float* x, float* y) {
    for (int i = 0; i < 3; ++i) {
        const float sum = block_sum(x[i * blockDim.x + threadIdx.x], ALTERNATE ? i % 2 : 0);
        y[i * blockDim.x + threadIdx.x] = sum;
    }
}
extern "C" __global__ void planted_sums(const float* x, float* y) { sums<true>(x, y); }
extern "C" __global__ void planted_sums_race(const float* x, float* y) { sums<false>(x, y); }

// Blocks that read what other blocks write.
extern "C" __global__ void planted_blocks_race(float* x) {
    x[blockIdx.x] = blockIdx.x + x[(blockIdx.x + 1) % gridDim.x];
}

extern "C" __global__ void planted_partial_barrier(float* y) {
    if (threadIdx.x >= 48) return;
    __syncthreads();
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void planted_divergent_barrier(float* y) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1.0f;
}

// Lane 5 leaves before the vote that names it.
extern "C" __global__ void planted_partial_vote(unsigned* y) {
    if (threadIdx.x == 5) return;
    y[threadIdx.x] = __ballot_sync(~0u, true);
}

// Half a warp waits in a shuffle, the other half at the barrier.
extern "C" __global__ void planted_torn_warp(float* y) {
    float x = 1.0f;
    if (threadIdx.x < 16)
        x = __shfl_sync(~0u, x, 0);
    else
        __syncthreads();
    y[threadIdx.x] = x;
}

extern "C" __global__ void planted_write_past_end(float* y, int n) {
    y[threadIdx.x == 0 ? n : static_cast<int>(threadIdx.x)] = 1.0f;
}

extern "C" __global__ void planted_shared_past_end(float* y) {
    SHARED(float, tile, 32);
    tile[threadIdx.x + 1] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + 1];
}

extern "C" __global__ void planted_load(const float* x, float* y, int offset) {
    float v[8];
    load8(x + offset, v);
    store8(y, v);
}

// A local array that all but fills a fiber's 256 KiB.
extern "C" __global__ void planted_large_frame(float* y) {
    volatile char frame[(256 << 10) - 768];
    for (volatile char& c : frame) c = 1;
    y[threadIdx.x] = frame[threadIdx.x];
}

extern "C" __global__ void planted_unwritten(float* y, int n) {
    if (threadIdx.x < static_cast<unsigned>(n) && threadIdx.x != 3) y[threadIdx.x] = 1.0f;
}

// Every shuffle and vote, a row of 32 results each.
extern "C" __global__ void planted_collectives(int* y) {
    const int lane = threadIdx.x;
    y[lane] = __shfl_sync(~0u, lane, 7);
    y[32 + lane] = __shfl_sync(~0u, lane, 1, 8);
    y[64 + lane] = __shfl_xor_sync(~0u, lane, 5);
    y[96 + lane] = __shfl_down_sync(~0u, lane, 3, 16);
    y[128 + lane] = __shfl_up_sync(~0u, lane, 3, 16);
    y[160 + lane] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
    y[192 + lane] = __any_sync(~0u, lane == 9) + 2 * __any_sync(~0u, lane == 99);
    y[224 + lane] = __all_sync(~0u, lane < 32) + 2 * __all_sync(~0u, lane < 31);
    // The two halves of the warp on their own.
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    int x = lane;
    if (lane < 16)
        x = __shfl_xor_sync(half, x, 1);
    else
        x = __shfl_xor_sync(half, x, 2);
    __syncwarp();
    y[256 + lane] = x;
}

extern "C" __global__ void planted_promise(float* y, int n) {
    EXPECTS(n % 8 == 0);
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void planted_count(int* y) { atomicAdd(y, 1); }

extern "C" __global__ void planted_coordinates(unsigned* y) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    y[block * threads + thread] = 100 * threadIdx.y + 10 * blockIdx.y + blockIdx.z;
}

// bf16: conversion, packing, stochastic rounding by 16 given bits.
extern "C" __global__ void planted_bf16(const float* x, const unsigned* random, bf16* nearest, bf16* low_high,
                                        bf16* stochastic) {
    const unsigned i = threadIdx.x;
    nearest[i] = to_bf16(x[i]);
    const unsigned both = pack_bf16(x[i], -x[i]);
    low_high[2 * i] = bf16{static_cast<unsigned short>(both)};
    low_high[2 * i + 1] = bf16{static_cast<unsigned short>(both >> 16)};
    stochastic[i] = to_bf16_stochastic(x[i], random[i]);
}

// y = x in pieces of 16 bytes a thread, two groups in flight; each thread reads what its neighbour copied. MISTAKE: 1 waits for
// one group too few, 2 leaves out the last commit, 3 the barrier.
template <int MISTAKE>
__device__ inline void staged_copy(const uint4* x, uint4* y, int stages) {
    SHARED(uint4, tile, 2 * 64);
    const int next = (threadIdx.x + 1) % 64;
    async_copy16(&tile[threadIdx.x], &x[threadIdx.x]);
    async_commit();
    for (int stage = 0; stage < stages; ++stage) {
        const bool more = stage + 1 < stages;
        uint4* const buffer = tile + 64 * ((stage + 1) % 2);
        // Past the end: zeroes.
        async_copy16(&buffer[threadIdx.x], &x[64 * (stage + 1) + threadIdx.x], !more);
        if (MISTAKE != 2 || more) async_commit();
        async_wait<MISTAKE == 1 ? 2 : 1>();
        if (MISTAKE != 3) __syncthreads();
        y[64 * stage + threadIdx.x] = tile[64 * (stage % 2) + next];
        __syncthreads();
    }
    async_wait<0>();
    __syncthreads();
    y[64 * stages + threadIdx.x] = tile[64 * (stages % 2) + next];
}
extern "C" __global__ void planted_async(const uint4* x, uint4* y, int stages) { staged_copy<0>(x, y, stages); }
extern "C" __global__ void planted_async_wait(const uint4* x, uint4* y, int stages) { staged_copy<1>(x, y, stages); }
extern "C" __global__ void planted_async_commit(const uint4* x, uint4* y, int stages) { staged_copy<2>(x, y, stages); }
extern "C" __global__ void planted_async_barrier(const uint4* x, uint4* y, int stages) { staged_copy<3>(x, y, stages); }

// d (16 × 8) = 1 + a (16 × 16) · b, by one warp. b comes as (16 × 8), loaded transposed, or as its transpose (8 × 16).
template <bool TRANSPOSED>
__device__ inline void product(const bf16* a, const bf16* b, float* d) {
    // 16-byte words, so that rows are aligned.
    SHARED(uint4, words, (16 * 16 + 16 * 8) / 8);
    const bf16* const tile = reinterpret_cast<const bf16*>(words);
    const int lane = threadIdx.x, g = lane / 4, c = 2 * (lane % 4);
    store16(words + lane, load16(a + 8 * lane));
    if (lane < 16) store16(words + 32 + lane, load16(b + 8 * lane));
    __syncwarp();
    unsigned left[4], right[4];
    load_tiles(left, tile + lane % 16 * 16 + lane / 16 * 8);
    // Two tiles of b, and the same again.
    const int row = lane % 8, second = lane / 8 % 2;
    load_tiles<TRANSPOSED>(right, tile + 256 + (TRANSPOSED ? 8 * (row + 8 * second) : 16 * row + 8 * second));
    float sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    const unsigned pair[2] = {right[0], right[1]};
    multiply_add(sum, left, pair);
    d[8 * g + c] = sum[0];
    d[8 * g + c + 1] = sum[1];
    d[8 * (g + 8) + c] = sum[2];
    d[8 * (g + 8) + c + 1] = sum[3];
}
extern "C" __global__ void planted_product(const bf16* a, const bf16* b, float* d) { product<true>(a, b, d); }
extern "C" __global__ void planted_product_transposed(const bf16* a, const bf16* b, float* d) { product<false>(a, b, d); }

// A product of the registers that each lane is given.
extern "C" __global__ void planted_fragments(const unsigned* a, const unsigned* b, float* d) {
    const int lane = threadIdx.x;
    const unsigned left[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
    const unsigned right[2] = {b[2 * lane], b[2 * lane + 1]};
    float sums[4] = {};
    multiply_add(sums, left, right);
    for (int i = 0; i < 4; ++i) d[4 * lane + i] = sums[i];
}

// What loading four tiles, one after the other, gives each lane.
template <bool TRANSPOSED>
__device__ inline void tiles(const bf16* x, unsigned* y) {
    SHARED(bf16, rows, 4 * 64);
    for (int i = threadIdx.x; i < 4 * 64; i += 32) rows[i] = x[i];
    __syncwarp();
    unsigned tile[4];
    load_tiles<TRANSPOSED>(tile, rows + 8 * threadIdx.x);
    for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = tile[i];
}
extern "C" __global__ void planted_tiles(const bf16* x, unsigned* y) { tiles<false>(x, y); }
extern "C" __global__ void planted_tiles_transposed(const bf16* x, unsigned* y) { tiles<true>(x, y); }
