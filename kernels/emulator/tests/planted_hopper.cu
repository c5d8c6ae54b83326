// Kernels with planted mistakes in the asynchronous parts of sm_90, for the emulator's own tests, and a sound one beside each.
#include "common/vec.cuh"
#include "common/wgmma.cuh"

// y = x, 2 · 1024 bytes in two phases; each thread reads what its neighbour's copy brought. MISTAKE: 1 a wait too late, 2 the wrong parity
// in the second phase, 3 bytes announced that never come, 4 fewer bytes announced than come, 5 an arrival too many, 6 a barrier that
// was never initialised, 7 one invalidated too early, 8 the last copy abandoned, 9 one that the other threads were not shown.
template <int MISTAKE>
__device__ inline void bulk(const uint4* x, uint4* y) {
    SHARED(uint4, tile, 2 * 64);
    SHARED(Mbarrier, full, 1);
    if (threadIdx.x == 0 && MISTAKE != 6) mbarrier_init(full, 1);
    if (MISTAKE != 9) show_mbarriers();
    __syncthreads();
    for (int phase = 0; phase < 2; ++phase) {
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect(full, MISTAKE == 3 ? 1040 : MISTAKE == 4 ? 1008 : 1024);
            bulk_copy(tile + 64 * phase, x + 64 * phase, 1024, full);
            if (MISTAKE == 5 && phase == 1) mbarrier_arrive(full);
        }
        if (MISTAKE == 7 && threadIdx.x == 32) mbarrier_invalidate(full);
        if (MISTAKE == 8 && phase == 1) return;
        if (MISTAKE != 1 || phase == 0) mbarrier_wait(full, MISTAKE == 2 ? 0 : phase);
        y[64 * phase + threadIdx.x] = tile[64 * phase + (threadIdx.x + 1) % 64];
        if (MISTAKE == 1) mbarrier_wait(full, phase);
        __syncthreads();  // all have passed before the next phase may complete
    }
    if (threadIdx.x == 0 && MISTAKE == 0) mbarrier_invalidate(full);
}
extern "C" __global__ void planted_bulk(const uint4* x, uint4* y) { bulk<0>(x, y); }
extern "C" __global__ void planted_bulk_wait(const uint4* x, uint4* y) { bulk<1>(x, y); }
extern "C" __global__ void planted_bulk_parity(const uint4* x, uint4* y) { bulk<2>(x, y); }
extern "C" __global__ void planted_bulk_more(const uint4* x, uint4* y) { bulk<3>(x, y); }
extern "C" __global__ void planted_bulk_fewer(const uint4* x, uint4* y) { bulk<4>(x, y); }
extern "C" __global__ void planted_bulk_arrivals(const uint4* x, uint4* y) { bulk<5>(x, y); }
extern "C" __global__ void planted_bulk_nothing(const uint4* x, uint4* y) { bulk<6>(x, y); }
extern "C" __global__ void planted_bulk_invalid(const uint4* x, uint4* y) { bulk<7>(x, y); }
extern "C" __global__ void planted_bulk_abandoned(const uint4* x, uint4* y) { bulk<8>(x, y); }
extern "C" __global__ void planted_bulk_hidden(const uint4* x, uint4* y) { bulk<9>(x, y); }

// Two copies with an mbarrier each, the second waited for first. MISTAKE: 1 the first is not waited for before it is read.
template <int MISTAKE>
__device__ inline void pair(const uint4* x, uint4* y) {
    SHARED(uint4, tile, 2 * 32);
    SHARED(Mbarrier, full, 2);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) mbarrier_init(full + i, 1);
        show_mbarriers();
        for (int i = 0; i < 2; ++i) {
            mbarrier_arrive_expect(full + i, 512);
            bulk_copy(tile + 32 * i, x + 32 * i, 512, full + i);
        }
    }
    __syncthreads();
    mbarrier_wait(full + 1, 0);
    y[32 + threadIdx.x] = tile[32 + threadIdx.x];
    if (MISTAKE != 1) mbarrier_wait(full, 0);
    y[threadIdx.x] = tile[threadIdx.x];
    mbarrier_wait(full, 0);
}
extern "C" __global__ void planted_pair(const uint4* x, uint4* y) { pair<0>(x, y); }
extern "C" __global__ void planted_pair_wait(const uint4* x, uint4* y) { pair<1>(x, y); }

// Three warpgroups of 168 registers a thread. MISTAKE: 1 nobody gives what the others take, 2 one gives more than it has, 3 one takes
// fewer than it has.
template <int MISTAKE>
__device__ inline void registers(float* y) {
    if (threadIdx.x >= 128) take_registers<240>();
    else if (MISTAKE == 2) give_registers<240>();
    else if (MISTAKE == 3) take_registers<24>();
    else if (MISTAKE == 0) give_registers<24>();
    y[threadIdx.x] = 1.0f;
}
extern "C" __global__ void planted_registers(float* y) { registers<0>(y); }
extern "C" __global__ void planted_registers_all(float* y) { registers<1>(y); }
extern "C" __global__ void planted_registers_give(float* y) { registers<2>(y); }
extern "C" __global__ void planted_registers_take(float* y) { registers<3>(y); }

// A wait whose parity never comes.
extern "C" __global__ void planted_parity(float* y) {
    SHARED(Mbarrier, full, 1);
    if (threadIdx.x == 0) mbarrier_init(full, 32);
    show_mbarriers();
    __syncthreads();
    mbarrier_wait(full, 1);  // of the phase before the first
    mbarrier_arrive(full);
    mbarrier_wait(full, 0);
    mbarrier_wait(full, 1);
    y[threadIdx.x] = 1.0f;
}

// A ring of two stages of 512 bytes: warp 1 fills, warp 0 empties into y. MISTAKE: 1 does not wait for a stage to be empty, 2 tells
// that it is before it was read.
template <int MISTAKE>
__device__ inline void ring(const uint4* x, uint4* y, int steps) {
    SHARED(uint4, tile, 2 * 32);
    SHARED(Mbarrier, full, 2);
    SHARED(Mbarrier, empty, 2);
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; ++i) {
            mbarrier_init(full + i, 1);
            mbarrier_init(empty + i, 32);
        }
    show_mbarriers();
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
        const int stage = step % 2, parity = step / 2 % 2;
        if (threadIdx.x == 32) {
            if (MISTAKE != 1) mbarrier_wait(empty + stage, parity ^ 1);
            mbarrier_arrive_expect(full + stage, 512);
            bulk_copy(tile + 32 * stage, x + 32 * step, 512, full + stage);
        } else if (threadIdx.x < 32) {
            mbarrier_wait(full + stage, parity);
            if (MISTAKE == 2) mbarrier_arrive(empty + stage);
            y[32 * step + threadIdx.x] = tile[32 * stage + threadIdx.x];
            if (MISTAKE != 2) mbarrier_arrive(empty + stage);
        }
    }
}
extern "C" __global__ void planted_ring(const uint4* x, uint4* y, int steps) { ring<0>(x, y, steps); }
extern "C" __global__ void planted_ring_full(const uint4* x, uint4* y, int steps) { ring<1>(x, y, steps); }
extern "C" __global__ void planted_ring_early(const uint4* x, uint4* y, int steps) { ring<2>(x, y, steps); }

// A box of a tensor, as it lies in shared memory.
template <int RANK>
__device__ inline void box(const TensorMap* map, unsigned* words, int bytes, int x, int y, int z) {
    DYNAMIC_SHARED(unsigned, tile);
    SHARED(Mbarrier, full, 1);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        show_mbarriers();
        mbarrier_arrive_expect(full, bytes);
        if constexpr (RANK == 2)
            tensor_copy(tile, map, x, y, full);
        else
            tensor_copy(tile, map, x, y, z, full);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) words[i] = tile[i];
}
extern "C" __global__ void planted_tensor_2d(const __grid_constant__ TensorMap map, unsigned* words, int bytes, int x,
                                             int y) {
    box<2>(&map, words, bytes, x, y, 0);
}
extern "C" __global__ void planted_tensor_3d(const __grid_constant__ TensorMap map, unsigned* words, int bytes, int x,
                                             int y, int z) {
    box<3>(&map, words, bytes, x, y, z);
}

// Where element (i, k) of an operand of `extent` rows i and 32 columns k lies, in bytes; and its descriptor from column 16 step on.
template <Swizzle SWIZZLE, bool TRANSPOSED>
struct Layout {
    static constexpr int ROW = SWIZZLE == Swizzle::BYTES_64 ? 64 : 128;
    __device__ static int at(int i, int k) {
        if (SWIZZLE == Swizzle::NONE) {
            // Blocks of 8 × 8: four along k, then the next eight i.
            const int block = (i / 8 * 4 + k / 8) * 128;
            return block + (TRANSPOSED ? k % 8 * 16 + i % 8 * 2 : i % 8 * 16 + k % 8 * 2);
        }
        const int row = TRANSPOSED ? i / (ROW / 2) * 32 + k : i, byte = (TRANSPOSED ? i % (ROW / 2) : k) * 2;
        const int chunk = byte / 16 ^ (ROW == 128 ? row % 8 : row / 2 % 4);
        return row * ROW + chunk * 16 + byte % 16;
    }
    __device__ static unsigned long long describe(const bf16* first, int step) {
        if (SWIZZLE == Swizzle::NONE) return operand<SWIZZLE>(first + step * 128, 512, 128);
        if (TRANSPOSED) return operand<SWIZZLE>(first + step * 16 * ROW / 2, 8 * ROW, 32 * ROW);
        return operand<SWIZZLE>(first + step * 16, 8 * ROW);
    }
};

// d (64 × N) = a (64 × 32) · bᵀ (b: N × 32), by one warpgroup. MISTAKE: 1 reads before the wait, 2 no fence, 3 no commit, 4 changes
// an operand before the wait, 5 a thread that stays away, 6 a descriptor outside of shared memory, 7 a warp without a lane at the
// wait, 8 gives its registers up, 9 does not show its stores, 10 shows them too early.
template <Swizzle SWIZZLE, bool A_TRANSPOSED, bool B_TRANSPOSED, int N, bool IN_REGISTERS = false, int MISTAKE = 0>
__device__ inline void warpgroup_product(const bf16* a, const bf16* b, float* d) {
    DYNAMIC_SHARED(bf16, left);
    bf16* const right = left + 64 * 64;
    using A = Layout<SWIZZLE, A_TRANSPOSED>;
    using B = Layout<SWIZZLE, B_TRANSPOSED>;
    if (MISTAKE == 10) show_stores();
    for (int e = threadIdx.x; e < 64 * 32; e += blockDim.x) left[A::at(e / 32, e % 32) / 2] = a[e];
    for (int e = threadIdx.x; e < N * 32; e += blockDim.x) right[B::at(e / 32, e % 32) / 2] = b[e];
    if (MISTAKE != 9 && MISTAKE != 10) show_stores();
    __syncthreads();
    if (MISTAKE == 5 && threadIdx.x == 100) return;
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
    Sums<N> sums;
    Fragment fragments[2];
    for (int step = 0; IN_REGISTERS && step < 2; ++step)
        for (int i = 0; i < 4; ++i) {
            const bf16* const two = a + (row + i % 2 * 8) * 32 + 16 * step + i / 2 * 8 + column;
            fragments[step](i) = two[0].bits | static_cast<unsigned>(two[1].bits) << 16;
        }
    if (MISTAKE != 2) product_fence(sums, fragments);
    for (int step = 0; step < 2; ++step) {
        const bf16* const from = MISTAKE == 6 ? left + 113 * 1024 : right;
        if constexpr (IN_REGISTERS)
            product<B_TRANSPOSED>(sums, fragments[step], B::describe(from, step), step > 0);
        else
            product<A_TRANSPOSED, B_TRANSPOSED>(sums, A::describe(left, step), B::describe(from, step), step > 0);
    }
    if (MISTAKE != 3) product_commit();
    if (MISTAKE == 8) return;
    if (MISTAKE == 1) d[0] = sums(0, 0, 0);
    if (MISTAKE == 4 && threadIdx.x == 127) right[B::at(3, 5) / 2] = bf16{0};
    if (MISTAKE == 7 && threadIdx.x == 3) __syncthreads();
    product_wait<0>(sums);
    for (int n = 0; n < N / 8; ++n)
        for (int half = 0; half < 2; ++half)
            for (int odd = 0; odd < 2; ++odd)
                d[(row + 8 * half) * N + 8 * n + column + odd] = sums(n, half, odd);
}
extern "C" __global__ void planted_warpgroup_none_kk_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, false, false, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_none_kk_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, false, false, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_none_mk_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, true, false, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_none_mk_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, true, false, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_none_kn_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, false, true, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_none_kn_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, false, true, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_none_mn_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, true, true, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_none_mn_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::NONE, true, true, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_kk_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, false, false, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_kk_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, false, false, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_mk_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, true, false, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_mk_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, true, false, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_kn_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, false, true, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_kn_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, false, true, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_mn_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, true, true, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_64_mn_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_64, true, true, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_kk_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, false, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_kk_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, false, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_mk_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, true, false, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_mk_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, true, false, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_kn_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_kn_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_mn_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, true, true, 64>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_mn_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, true, true, 128>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_read(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 1>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_fence(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 2>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_commit(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 3>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_operand(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 4>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_partial(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 5>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_outside(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 6>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_torn(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 7>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_lost(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 8>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_hidden(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 9>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_mistake_early(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 64, false, 10>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_128_kk_n256(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, false, 256>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_registers_n64(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, false, 64, true>(a, b, d);
}
extern "C" __global__ void planted_warpgroup_registers_n128(const bf16* a, const bf16* b, float* d) {
    warpgroup_product<Swizzle::BYTES_128, false, true, 128, true>(a, b, d);
}

// Warp 0 hands a number to warp 1 through barrier 1 of 64 threads. MISTAKE: 1 the second warp expects more threads, 2 the first
// never arrives.
template <int MISTAKE>
__device__ inline void hand_over(float* y) {
    SHARED(float, value, 32);
    if (threadIdx.x < 32) {
        value[threadIdx.x] = threadIdx.x;
        if (MISTAKE != 2) barrier_arrive(1, 64);
    } else {
        barrier_sync(1, MISTAKE == 1 ? 96 : 64);
        y[threadIdx.x - 32] = value[threadIdx.x - 32] + 1.0f;
    }
}
extern "C" __global__ void planted_named(float* y) { hand_over<0>(y); }
extern "C" __global__ void planted_named_count(float* y) { hand_over<1>(y); }
extern "C" __global__ void planted_named_missing(float* y) { hand_over<2>(y); }
