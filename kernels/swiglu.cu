// SwiGLU: y = silu(g) · u, silu(g) = g · σ(g).
// Backward: du = dy · silu(g), dg = dy · u · σ(g) · (1 + g · (1 − σ(g))).
//
// gate_up: bf16 [rows, 2 ffn] (gate, then up); y, dy: bf16 [rows, ffn]. ffn: a multiple of 8.
// Grid · block ≥ rows · ffn / 8 threads, 8 elements each; block: any (256).
//
// kernel                 bytes moved        floor on an H100 (3.0 TB/s), 16384 rows of 4864
// swiglu_forward_bf16    rows · 6 ffn       0.16 ms
// swiglu_backward_bf16   rows · 10 ffn      0.27 ms
// Checked by emulation only.
#include "common/vec.cuh"

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Offset of this thread's 8 gates in gate_up; `flat` is that of its outputs. False past the end.
__device__ inline bool locate(int rows, int ffn, size_t& gate, size_t& flat) {
    EXPECTS(ffn % 8 == 0);
    const unsigned chunk = blockIdx.x * blockDim.x + threadIdx.x, chunks = ffn / 8;
    const unsigned row = chunk / chunks;
    flat = 8 * static_cast<size_t>(chunk);
    gate = flat + static_cast<size_t>(row) * ffn;
    return row < static_cast<unsigned>(rows);
}

extern "C" __global__ void __launch_bounds__(256)
    swiglu_forward_bf16(const bf16* __restrict__ gate_up, bf16* __restrict__ y, int rows, int ffn) {
    size_t at, flat;
    if (!locate(rows, ffn, at, flat)) return;
    float g[8], u[8];
    load8(gate_up + at, g);
    load8(gate_up + at + ffn, u);
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] = g[i] * sigmoid(g[i]) * u[i];
    store8(y + flat, g);
}

// Overwrites gate_up with its gradient.
extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward_bf16(const bf16* __restrict__ dy, bf16* __restrict__ gate_up, int rows, int ffn) {
    size_t at, flat;
    if (!locate(rows, ffn, at, flat)) return;
    float g[8], u[8], d[8];
    load8(gate_up + at, g);
    load8(gate_up + at + ffn, u);
    load8(dy + flat, d);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float x = g[i], s = sigmoid(x);
        g[i] = d[i] * u[i] * s * (1.0f + x * (1.0f - s));
        u[i] = d[i] * x * s;
    }
    store8(gate_up + at, g);
    store8(gate_up + at + ffn, u);
}
