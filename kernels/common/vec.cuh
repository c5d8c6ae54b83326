// Global memory in chunks of 8 elements, each a 16-byte access for bf16 and two for f32. Addresses are multiples of 16 bytes.
#pragma once
#include "common/bf16.cuh"

__device__ inline uint4 load16(const void* p WHERE) {
#ifndef __CUDACC__
    emulator_access(p, 16 HERE);
#endif
    return *static_cast<const uint4*>(p);
}

__device__ inline void store16(void* p, uint4 value WHERE) {
#ifndef __CUDACC__
    emulator_access(p, 16 HERE);
#endif
    *static_cast<uint4*>(p) = value;
}

__device__ inline void load8(const bf16* p, float (&x)[8] WHERE) {
    const uint4 raw = load16(p HERE);
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

__device__ inline void load8(const float* p, float (&x)[8] WHERE) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const uint4 raw = load16(p + i HERE);
        x[i] = __uint_as_float(raw.x);
        x[i + 1] = __uint_as_float(raw.y);
        x[i + 2] = __uint_as_float(raw.z);
        x[i + 3] = __uint_as_float(raw.w);
    }
}

__device__ inline void store8(bf16* p, const float (&x)[8] WHERE) {
    store16(p, uint4{pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])} HERE);
}

__device__ inline void store8(float* p, const float (&x)[8] WHERE) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const uint4 raw = {__float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                           __float_as_uint(x[i + 3])};
        store16(p + i, raw HERE);
    }
}
