// RoPE of eight pairs (a[i], b[i]), which lie half a head apart.
#pragma once
#include "common/vec.cuh"

// By the angles of which cos and sin are given; sign −1: back.
__device__ inline void rotate8(float (&a)[8], float (&b)[8], const float* cos, const float* sin, float sign) {
    float c[8], s[8];
    load8(cos, c);
    load8(sin, s);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float first = a[i], second = b[i], turn = sign * s[i];
        a[i] = first * c[i] - second * turn;
        b[i] = second * c[i] + first * turn;
    }
}
