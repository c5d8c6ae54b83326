// AdamW with decoupled weight decay over flat buffers, and the global gradient norm that clips it.
//
// g ← g · scale; m ← m + (1 − β₁)(g − m); v ← β₂ v + (1 − β₂) g²; p ← p · keep − rate · m / (√v · inv_root + eps), where the
// host gives keep = 1 − lr · decay, rate = lr / (1 − β₁ᵗ), inv_root = 1 / √(1 − β₂ᵗ), and `scale` lies on the device.
// p (master weights), m, v: f32 [n]; g: bf16 or f32 [n]; copy (the weights that the model reads): bf16 [n]; turns: u32 [count], the chunks
// of 8, in order, from which on weights decay, and no longer do, and do again, …: one launch for all tensors.
// n: a multiple of 8 (tensors in a flat buffer are padded). A thread updates 8 elements.
//
// kernel                         grid, block                   bytes per parameter   floor on an H100 (3.0 TB/s), 494 M
// adamw_step_bf16                grid · block ≥ n / 8; 256     28                    4.6 ms
// adamw_step_f32                                               30                    4.9 ms
// adamw_step_stochastic_*                                      the same
// adamw_grad_norm_partial_bf16   any, fixed (528); 256         2                     0.33 ms
// adamw_grad_norm_partial_f32                                  4                     0.66 ms
// adamw_grad_norm_finish_f32     1; 256                        4 · grid              1 µs
// Checked by emulation only.
#include "common/adamw.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

// Whether the weights of a chunk decay: an odd number of turns is behind it.
__device__ inline bool decays(const unsigned* turns, int count, size_t chunk) {
    int low = 0, high = count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (turns[middle] <= chunk)
            low = middle + 1;
        else
            high = middle;
    }
    return low % 2;
}

// STOCHASTIC: the copy is rounded by 16 bits for each element, a Philox block for each chunk of 8 (index: the chunk).
template <bool STOCHASTIC, class G>
__device__ inline void step(float* p, const G* g, float* m, float* v, bf16* copy, const float* scale,
                            const unsigned* turns, int count, size_t n, AdamWScalars o, unsigned long long seed,
                            unsigned long long stream) {
    EXPECTS(n % 8 == 0);
    const size_t chunk = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, at = 8 * chunk;
    if (at >= n) return;
    float weight[8], grad[8], mean[8], square[8];
    load8(p + at, weight);
    load8(g + at, grad);
    load8(m + at, mean);
    load8(v + at, square);
    adamw_update(weight, grad, mean, square, o, *scale, decays(turns, count, chunk) ? o.keep : 1.0f);
    store8(p + at, weight);
    store8(m + at, mean);
    store8(v + at, square);
    if constexpr (STOCHASTIC) round_stochastic(weight, seed, stream, chunk);
    store8(copy + at, weight);
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_step_bf16(float* __restrict__ p, const bf16* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
                    bf16* __restrict__ copy, const float* __restrict__ scale,
                    const unsigned* __restrict__ turns, int count, size_t n, AdamWScalars o) {
    step<false>(p, g, m, v, copy, scale, turns, count, n, o, 0, 0);
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_step_f32(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
                   bf16* __restrict__ copy, const float* __restrict__ scale,
                    const unsigned* __restrict__ turns, int count, size_t n, AdamWScalars o) {
    step<false>(p, g, m, v, copy, scale, turns, count, n, o, 0, 0);
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_step_stochastic_bf16(float* __restrict__ p, const bf16* __restrict__ g, float* __restrict__ m,
                               float* __restrict__ v, bf16* __restrict__ copy, const float* __restrict__ scale,
                    const unsigned* __restrict__ turns, int count, size_t n, AdamWScalars o, unsigned long long seed, unsigned long long stream) {
    step<true>(p, g, m, v, copy, scale, turns, count, n, o, seed, stream);
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_step_stochastic_f32(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m,
                              float* __restrict__ v, bf16* __restrict__ copy, const float* __restrict__ scale,
                    const unsigned* __restrict__ turns, int count, size_t n, AdamWScalars o, unsigned long long seed, unsigned long long stream) {
    step<true>(p, g, m, v, copy, scale, turns, count, n, o, seed, stream);
}

// partial [grid] = Σ g² over the block's chunks.
template <class G>
__device__ inline void sum_squares(const G* g, float* partial, size_t n) {
    EXPECTS(n % 8 == 0);
    const size_t threads = static_cast<size_t>(gridDim.x) * blockDim.x;
    float sum = 0.0f;
#pragma unroll 4
    for (size_t chunk = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; chunk < n / 8; chunk += threads) {
        float x[8];
        load8(g + 8 * chunk, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += x[i] * x[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_grad_norm_partial_bf16(const bf16* __restrict__ g, float* __restrict__ partial, size_t n) {
    sum_squares(g, partial, n);
}

extern "C" __global__ void __launch_bounds__(256)
    adamw_grad_norm_partial_f32(const float* __restrict__ g, float* __restrict__ partial, size_t n) {
    sum_squares(g, partial, n);
}

// norm[0] = √Σ partial; norm[1] = min(1, clip / (norm + 1e-6)), or 1 without a clip (0): the `scale` of a step.
extern "C" __global__ void __launch_bounds__(256)
    adamw_grad_norm_finish_f32(const float* __restrict__ partial, float* __restrict__ norm, int partials, float clip) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < partials; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    const float whole = static_cast<float>(sqrt(sum)), scale = clip / (whole + 1e-6f);
    norm[0] = whole;
    // Not fminf, which would turn the NaN of a broken gradient into 1.
    norm[1] = clip == 0.0f || scale > 1.0f ? 1.0f : scale;
}
