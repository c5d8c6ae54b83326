// Embedding: y[t] = W[token[t]]; dW[v] += Σ dy[t] over the t with token[t] = v. And rows put where they are wanted: W[to[i]] =
// y[from[i]].
//
// table: bf16 [vocab, hidden]; y, dy: bf16 [tokens, hidden]; d_table: bf16 or f32 [vocab, hidden]. hidden: a multiple of 8.
//
// embedding_forward_bf16: grid · block ≥ tokens · hidden / 8 threads, block 256. Moves tokens · (4 hidden + 4) bytes: 0.045 ms on
// an H100 (3.0 TB/s) for 16384 tokens of 2048.
// embedding_place_bf16: the same threads for each of the rows that are put. No two `to` are the same. 4 hidden + 8 bytes a row.
// embedding_backward_*: grid (distinct tokens, hidden / 1024 rounded up), block 128. Moves 2 tokens · hidden + 2 · size · distinct
// · hidden bytes: 0.033 ms for the same tokens, 2000 of them distinct, in f32.
// A token with very many occurrences is one block's serial sum: order, and so determinism, cost that much.
// Checked by emulation only.
#include "common/vec.cuh"

extern "C" __global__ void __launch_bounds__(256)
    embedding_forward_bf16(const unsigned* __restrict__ token, const bf16* __restrict__ table, bf16* __restrict__ y,
                           int tokens, int hidden) {
    EXPECTS(hidden % 8 == 0);
    const unsigned chunk = blockIdx.x * blockDim.x + threadIdx.x, chunks = hidden / 8;
    const unsigned row = chunk / chunks, column = 8 * (chunk % chunks);
    if (row >= static_cast<unsigned>(tokens)) return;
    store16(y + static_cast<size_t>(row) * hidden + column,
            load16(table + static_cast<size_t>(token[row]) * hidden + column));
}

extern "C" __global__ void __launch_bounds__(256)
    embedding_place_bf16(const unsigned* __restrict__ from, const unsigned* __restrict__ to, const bf16* __restrict__ y,
                         bf16* __restrict__ table, int rows, int hidden) {
    EXPECTS(hidden % 8 == 0);
    const unsigned chunk = blockIdx.x * blockDim.x + threadIdx.x, chunks = hidden / 8;
    const unsigned row = chunk / chunks, column = 8 * (chunk % chunks);
    if (row >= static_cast<unsigned>(rows)) return;
    store16(table + static_cast<size_t>(to[row]) * hidden + column,
            load16(y + static_cast<size_t>(from[row]) * hidden + column));
}

// The rows of dy that belong to distinct token v = id[b] are order[start[b] .. start[b + 1]]: positions sorted by token, stable.
// One block a distinct token and 1024 columns; sums in f32 in that order.
template <class T>
__device__ inline void backward(const unsigned* id, const unsigned* start, const unsigned* order, const bf16* dy,
                                T* d_table, int hidden) {
    EXPECTS(hidden % 8 == 0);
    const int column = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= hidden) return;
    T* const target = d_table + static_cast<size_t>(id[blockIdx.x]) * hidden + column;
    float sum[8];
    load8(target, sum);
    const unsigned end = start[blockIdx.x + 1];
#pragma unroll 4
    for (unsigned i = start[blockIdx.x]; i < end; ++i) {
        float g[8];
        load8(dy + static_cast<size_t>(order[i]) * hidden + column, g);
#pragma unroll
        for (int k = 0; k < 8; ++k) sum[k] += g[k];
    }
    store8(target, sum);
}

extern "C" __global__ void __launch_bounds__(128)
    embedding_backward_bf16(const unsigned* __restrict__ id, const unsigned* __restrict__ start,
                            const unsigned* __restrict__ order, const bf16* __restrict__ dy, bf16* __restrict__ d_table,
                            int hidden) {
    backward(id, start, order, dy, d_table, hidden);
}

extern "C" __global__ void __launch_bounds__(128)
    embedding_backward_f32(const unsigned* __restrict__ id, const unsigned* __restrict__ start,
                           const unsigned* __restrict__ order, const bf16* __restrict__ dy, float* __restrict__ d_table,
                           int hidden) {
    backward(id, start, order, dy, d_table, hidden);
}
