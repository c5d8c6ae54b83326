// Rows of D bf16 in shared memory as Hopper's copy engine brings them and its products take them: in boxes of 64 columns, one
// after the other, each of so many rows of 128 bytes, swizzled as many.
#pragma once
#include "common/vec.cuh"
#include "common/wgmma.cuh"

namespace boxes {
constexpr int WIDTH = 64;

// Rows from `first` on of a matrix whose map has boxes of 64 rows, columns from `column` on; zero beyond the matrix. By one thread.
template <int D, int ROWS>
__device__ inline void load(bf16* to, const TensorMap* map, int column, int first, Mbarrier* full) {
    for (int c = 0; c < D; c += WIDTH)
        for (int row = 0; row < ROWS; row += 64)
            tensor_copy(to + c * ROWS + row * WIDTH, map, column + c, first + row, full);
}

// s (64 × N) = (or +=) A · Bᵀ over D columns; `a`: 64 of A_ROWS rows, `b`: all N rows. Fences s, ends a group.
template <int D, int A_ROWS, int N>
__device__ inline void multiply_add(Sums<N>& s, const bf16* a, const bf16* b, bool accumulate) {
    product_fence(s);
    const auto left = operand<Swizzle::BYTES_128>(a, 16 * WIDTH), right = operand<Swizzle::BYTES_128>(b, 16 * WIDTH);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        const int box = k / 4, bytes = 2 * (k % 4 * 16);
        product(s, further(left, 2 * box * A_ROWS * WIDTH + bytes), further(right, 2 * box * N * WIDTH + bytes),
                accumulate || k > 0);
    }
    product_commit();
}

template <int D, int A_ROWS, int N>
__device__ inline void multiply(Sums<N>& s, const bf16* a, const bf16* b) {
    renew(s);
    multiply_add<D, A_ROWS>(s, a, b, false);
}

// sum (64 × D) = (or +=) P · V, P: 64 × ROWS in registers, V: ROWS rows. Fences both, ends a group.
template <int ROWS, int D>
__device__ inline void weigh(Sums<D>& sum, Fragment (&p)[ROWS / 16], const bf16* v, bool accumulate) {
    product_fence(sum, p);
    const auto right = operand<Swizzle::BYTES_128>(v, 16 * WIDTH, 2 * ROWS * WIDTH);
#pragma unroll
    for (int k = 0; k < ROWS / 16; ++k)
        product<true>(sum, p[k], further(right, 2 * k * 16 * WIDTH), accumulate || k > 0);
    product_commit();
}

// The sums as the left operand of a product.
template <int N>
__device__ inline void pack(Fragment (&p)[N / 16], Sums<N>& s) {
#pragma unroll
    for (int k = 0; k < N / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) p[k](i) = pack_bf16(s(2 * k + i / 2, i % 2, 0), s(2 * k + i / 2, i % 2, 1));
}

// A warp's 16 rows, scaled by half, to the first so many `rows` and `columns` (a multiple of 8) of a matrix, 16 bytes a store: the
// four lanes of a row exchange what they have of four chunks of 8 columns, so that each has a whole one.
template <int N>
__device__ inline void store(bf16* to, size_t row_len, int rows, int columns, Sums<N>& sum, const float (&scale)[2]) {
    const int lane = threadIdx.x % 32, own = lane % 4;
    const bool odd = own % 2, upper = own / 2;
    const auto exchange = [](unsigned& x, unsigned& y, bool give_x, int with) {
        const unsigned got = __shfl_xor_sync(~0u, give_x ? x : y, with);
        (give_x ? x : y) = got;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + 8 * half;
#pragma unroll
        for (int i = 0; i < N / 32; ++i) {
            unsigned w[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                w[j] = pack_bf16(sum(4 * i + j, half, 0) * scale[half], sum(4 * i + j, half, 1) * scale[half]);
            exchange(w[0], w[1], odd, 1);
            exchange(w[2], w[3], odd, 1);
            exchange(w[0], w[2], upper, 2);
            exchange(w[1], w[3], upper, 2);
            const int column = 32 * i + 8 * own;
            if (row < rows && column < columns) store16(to + row * row_len + column, uint4{w[0], w[1], w[2], w[3]});
        }
    }
}
}  // namespace boxes
