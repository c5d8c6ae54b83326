// AdamW's update of 8 elements: what the steps over f32 and over 8-bit moments share.
#pragma once
#include "philox.cuh"
#include "vec.cuh"

// The scalars of one step, which the host computes.
struct AdamWScalars {
    float rate, inv_root, keep, beta1, beta2, eps;
};

// g ← g · scale; m ← m + (1 − β₁)(g − m); v ← β₂ v + (1 − β₂) g²; p ← p · keep − rate · m / (√v · inv_root + eps)
__device__ inline void adamw_update(float (&p)[8], const float (&g)[8], float (&m)[8], float (&v)[8],
                                    const AdamWScalars& o, float scale, float keep) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float d = g[i] * scale;
        m[i] += (d - m[i]) * (1.0f - o.beta1);
        v[i] = v[i] * o.beta2 + d * d * (1.0f - o.beta2);
        p[i] = p[i] * keep - o.rate * m[i] / (sqrtf(v[i]) * o.inv_root + o.eps);
    }
}

// Rounds each to bf16 by 16 random bits of the Philox block of this index.
__device__ inline void round_stochastic(float (&x)[8], unsigned long long seed, unsigned long long stream,
                                        unsigned long long index) {
    const uint4 random = philox(seed, stream, index);
    const unsigned words[4] = {random.x, random.y, random.z, random.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to_float(to_bf16_stochastic(x[i], words[i / 2] >> 16 * (i % 2) & 0xffffu));
}
