// bfloat16: the upper half of an f32. Conversions round to nearest, ties to even.
#pragma once
#include "common/target.cuh"

struct bf16 {
    unsigned short bits;
};

__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

#ifndef __CUDACC__
inline unsigned nearest_bf16(float x) {
    const unsigned u = __float_as_uint(x);
    if (x != x) return u >> 16 | 0x40;  // a NaN stays one
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
#endif

// Two values in one word, `low` in the lower half (first in memory).
__device__ inline unsigned pack_bf16(float low, float high) {
#ifdef __CUDACC__
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return nearest_bf16(low) | nearest_bf16(high) << 16;
#endif
}

__device__ inline bf16 to_bf16(float x) { return bf16{static_cast<unsigned short>(pack_bf16(x, 0.0f))}; }

// Rounds up with the probability of the part cut off, `random` being 16 uniform bits: unbiased. Inf and NaN stay what they are.
__device__ inline bf16 to_bf16_stochastic(float x, unsigned random) {
    const unsigned u = __float_as_uint(x);
    const bool finite = (u & 0x7f800000u) != 0x7f800000u;
    return finite ? bf16{static_cast<unsigned short>((u + random) >> 16)} : to_bf16(x);
}
