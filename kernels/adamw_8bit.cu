// AdamW with moments of 8 bits, as bitsandbytes defines them: a code for each element, a scale for each block of 256 of a tensor.
//
// m = map(code) · scale. g ← g · scale; m ← m + (1 − β₁)(g − m); v ← β₂ v + (1 − β₂) g²; p ← p · keep − rate · m / (√v · inv_root + eps),
// where the host gives keep = 1 − lr · decay, or 1, rate = lr / (1 − β₁ᵗ), inv_root = 1 / √(1 − β₂ᵗ), and `scale` lies on the device. Then
// each block's scale is its largest |m|, and each code the nearest: the lower of two.
// One tensor a launch. p (master weights): f32 [n]; g: f32 [n]; m, v: codes, 8 bits [n]; m_max, v_max: f32 [ceil(n / 256)]; copy (the
// weights that the model reads): bf16 [n]; maps: f32 [2, 256], ascending, of the first and of the second moment. n: a multiple of 8.
// A warp has a block of 256: each thread 8 elements.
//
// kernel                  grid, block                    bytes per parameter   floor on an H100 (3.0 TB/s), 7.6 G
// adamw_8bit_step_f32     8 · grid ≥ n / 256; 256        18                    45.6 ms
// adamw_8bit_step_bf16    the same, without p            12                    30.4 ms
// Checked by emulation only. Run: uncouple selftest --device cuda, uncouple bench kernels --device cuda.
#include "common/adamw.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

typedef unsigned char code;

__device__ inline void load8(const code* p, unsigned (&x)[8] WHERE) {
#ifndef __CUDACC__
    emulator_access(p, 8 HERE);
#endif
    const unsigned long long raw = *reinterpret_cast<const unsigned long long*>(p);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = static_cast<unsigned>(raw >> 8 * i) & 0xffu;
}

__device__ inline void store8(code* p, const unsigned (&x)[8] WHERE) {
#ifndef __CUDACC__
    emulator_access(p, 8 HERE);
#endif
    unsigned long long raw = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) raw |= static_cast<unsigned long long>(x[i]) << 8 * i;
    *reinterpret_cast<unsigned long long*>(p) = raw;
}

// The code whose value is nearest, the lower of two.
__device__ inline unsigned nearest(const float* map, float x) {
    unsigned low = 0, high = 255;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const unsigned middle = (low + high) / 2;
        const bool above = x > map[middle];
        low = above ? middle : low;
        high = above ? high : middle;
    }
    return fabsf(x - map[low]) <= fabsf(x - map[high]) ? low : high;
}

// The scale of a warp's block, and the codes of this thread's 8.
__device__ inline float quantize(const float* map, const float (&x)[8], unsigned (&codes)[8] WHERE) {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(x[i]));
#pragma unroll
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step, 32 HERE));
    const float by = most > 0.0f ? most : 1.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) codes[i] = nearest(map, x[i] / by);
    return most;
}

// MASTER: weights are kept in f32, and the copy is the nearest. Else the copy is all there is, and rounded by 16 bits for each element, a
// Philox block for each chunk of 8 (index: `first`, the tensor's first chunk, and the chunk).
template <bool MASTER>
__device__ inline void step8(float* p, const float* g, code* m, code* v, float* m_max, float* v_max, bf16* copy,
                             const float* scale, const float* maps, size_t n, AdamWScalars o, unsigned long long seed,
                             unsigned long long stream, size_t first WHERE) {
    EXPECTS(n % 8 == 0);
    SHARED(float, map, 2 * 256);
    map[threadIdx.x] = maps[threadIdx.x];
    map[256 + threadIdx.x] = maps[256 + threadIdx.x];
    __syncthreads(HERE_ALONE);
    const size_t block = static_cast<size_t>(blockIdx.x) * 8 + threadIdx.x / 32, at = block * 256 + threadIdx.x % 32 * 8;
    const bool mine = at < n;
    float mean[8] = {}, square[8] = {};
    if (mine) {
        float weight[8], grad[8];
        unsigned codes[8];
        if constexpr (MASTER)
            load8(p + at, weight);
        else
            load8(copy + at, weight);
        load8(g + at, grad);
        const float m_by = m_max[block], v_by = v_max[block];
        load8(m + at, codes);
#pragma unroll
        for (int i = 0; i < 8; ++i) mean[i] = map[codes[i]] * m_by;
        load8(v + at, codes);
#pragma unroll
        for (int i = 0; i < 8; ++i) square[i] = map[256 + codes[i]] * v_by;
        adamw_update(weight, grad, mean, square, o, *scale, o.keep);
        if constexpr (MASTER)
            store8(p + at, weight);
        else
            round_stochastic(weight, seed, stream, first + at / 8);
        store8(copy + at, weight);
    }
    unsigned m_codes[8], v_codes[8];
    const float m_most = quantize(map, mean, m_codes HERE), v_most = quantize(map + 256, square, v_codes HERE);
    if (!mine) return;
    store8(m + at, m_codes);
    store8(v + at, v_codes);
    if (threadIdx.x % 32 == 0) {
        m_max[block] = m_most;
        v_max[block] = v_most;
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    adamw_8bit_step_f32(float* __restrict__ p, const float* __restrict__ g, code* __restrict__ m, code* __restrict__ v,
                        float* __restrict__ m_max, float* __restrict__ v_max, bf16* __restrict__ copy,
                        const float* __restrict__ scale, const float* __restrict__ maps, size_t n, AdamWScalars o) {
    step8<true>(p, g, m, v, m_max, v_max, copy, scale, maps, n, o, 0, 0, 0);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    adamw_8bit_step_bf16(const float* __restrict__ g, code* __restrict__ m, code* __restrict__ v,
                         float* __restrict__ m_max, float* __restrict__ v_max, bf16* __restrict__ copy,
                         const float* __restrict__ scale, const float* __restrict__ maps, size_t n, AdamWScalars o,
                         unsigned long long seed, unsigned long long stream, size_t first) {
    step8<false>(nullptr, g, m, v, m_max, v_max, copy, scale, maps, n, o, seed, stream, first);
}
