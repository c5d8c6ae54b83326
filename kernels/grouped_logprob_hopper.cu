// The two products of kernels/grouped_logprob.cu on Hopper (sm_90a), by TMA copies and WGMMA products: the forward pass'
// online softmax and the gradient of the logits. Formulas, arguments and results are those of that file, but hidden and W come as
// tensor maps, in boxes of 64 × 64, 128-byte swizzle.
//
// kernel                               grid                           block, shared    flops or bytes
// grouped_logprob_hopper_forward_bf16  (rows / 128, splits)           384, 196,672     2 rows · vocab · width
// grouped_logprob_hopper_grad_bf16     multiprocessors, at most tiles 384, 196,672     2 rows · vocab · width, writes 2 rows · stride
// A tile is 128 rows × 256 entries of the vocabulary, 64 rows for each of two warpgroups, in registers. One thread of the third
// copies stages of 64 columns, four ahead, into the block's next tile too, while this one's logits become exponentials.
//
// Floors as there. Predicted: 500 to 550 TFLOP/s at a width of 896, 580 at 2048. Checked by emulation only.
#include "common/boxes.cuh"
#include "common/softmax.cuh"

namespace {
constexpr int ROWS = 128, ENTRIES = 256, DEPTH = 64, STAGES = 4, GROUPS = 2;
constexpr float LOG2_E = 1.44269504f;

struct Shared {
    struct {
        bf16 hidden[ROWS * DEPTH], w[ENTRIES * DEPTH];
    } stages[STAGES];
    Mbarrier full[STAGES], empty[STAGES];

    __device__ void init() {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) {
                mbarrier_init(&full[i], 1);
                mbarrier_init(&empty[i], 4 * GROUPS);  // warps
            }
            show_mbarriers();
        }
        __syncthreads();
    }
};
static_assert(sizeof(Shared) == 196672, "the shared memory that the host gives");

// Which stage it is the turn of.
struct Turn {
    int step = 0;
    __device__ int stage() const { return step % STAGES; }
    __device__ int parity() const { return step / STAGES % 2; }
};

// By one thread: the stages of a tile.
__device__ inline void copy(Shared& shared, Turn& turn, const TensorMap* hidden, const TensorMap* w, int row, int entry,
                            int width) {
    for (int column = 0; column < width; column += DEPTH, ++turn.step) {
        auto& stage = shared.stages[turn.stage()];
        Mbarrier* const full = &shared.full[turn.stage()];
        mbarrier_wait(&shared.empty[turn.stage()], turn.parity() ^ 1);
        mbarrier_arrive_expect(full, sizeof(stage));
        boxes::load<DEPTH, ROWS>(stage.hidden, hidden, column, row, full);
        boxes::load<DEPTH, ENTRIES>(stage.w, w, column, entry, full);
    }
}

// By a warpgroup: the logits of a tile, not scaled.
__device__ inline void multiply(Shared& shared, Turn& turn, Sums<ENTRIES>& l, int width) {
    const int group = threadIdx.x / 128;
    const auto release = [&](int stage) {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[stage]);
    };
    renew(l);
    for (int column = 0; column < width; column += DEPTH, ++turn.step) {
        const auto& stage = shared.stages[turn.stage()];
        mbarrier_wait(&shared.full[turn.stage()], turn.parity());
        boxes::multiply_add<DEPTH, ROWS>(l, stage.hidden + 64 * group * DEPTH, stage.w, column > 0);
        if (column > 0) {
            product_wait<1>();
            release((turn.step - 1) % STAGES);
        }
    }
    product_wait<0>(l);
    release((turn.step - 1) % STAGES);
}

// Makes logits beyond the first so many columns of a tile so small, times `factor`, that their exponentials are 0.
__device__ inline void hide_beyond(Sums<ENTRIES>& l, int columns, float factor) {
    if (columns >= ENTRIES) return;
    const float lowest = LOWEST / factor;
    each(l, [&](float& x, int, int column) { x = column < columns ? x : lowest; });
}

// Calls found(target, n, odd) for each target of `row` that lies in this thread's columns of the tile at `first`.
template <class F>
__device__ inline void find_targets(const unsigned* target_start, const unsigned* target_token, int row, int first,
                                    const F& found) {
    const unsigned end = target_start[row + 1];
    for (unsigned t = target_start[row]; t < end; ++t) {
        const int offset = static_cast<int>(target_token[t]) - first - 2 * static_cast<int>(threadIdx.x % 4);
        if (offset >= 0 && offset < ENTRIES && offset % 8 < 2) found(t, offset / 8, offset % 8);
    }
}

// This thread's rows of a tile: the first, and 8 further on.
__device__ inline int own_row() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }
}  // namespace

extern "C" __global__ void __launch_bounds__(384, 1)
    grouped_logprob_hopper_forward_bf16(const __grid_constant__ TensorMap hidden, const __grid_constant__ TensorMap w,
                                        const unsigned* __restrict__ target_start,
                                        const unsigned* __restrict__ target_token, float* __restrict__ partial,
                                        float* __restrict__ target_logit, int rows, int vocab, int width, float scale) {
    DYNAMIC_SHARED(unsigned char, dynamic);
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    const int first_row = ROWS * blockIdx.x, splits = gridDim.y, split = blockIdx.y;
    const int tiles = (vocab + ENTRIES - 1) / ENTRIES;
    EXPECTS(splits <= tiles && first_row < rows && blockDim.x == 128 * (GROUPS + 1));
    const int from = static_cast<int>(static_cast<long long>(tiles) * split / splits);
    const int to = static_cast<int>(static_cast<long long>(tiles) * (split + 1) / splits);
    Turn turn;
    shared.init();
    if (threadIdx.x >= 128 * GROUPS) {
        give_registers<24>();
        if (threadIdx.x == 128 * GROUPS)
            for (int v = from; v < to; ++v) copy(shared, turn, &hidden, &w, first_row, v * ENTRIES, width);
    } else {
        take_registers<240>();
        const int lane = threadIdx.x % 32;
        const float factor = scale * LOG2_E;
        Sums<ENTRIES> l;
        Softmax seen[2] = {{LOWEST, 0.0f, 0.0f}, {LOWEST, 0.0f, 0.0f}};
        for (int v = from; v < to; ++v) {
            const int first = v * ENTRIES;
            multiply(shared, turn, l, width);
            hide_beyond(l, vocab - first, factor);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = l(0, half, 0);
                each(l, half, [&](float x) { top = fmaxf(top, x); });
                const int row = first_row + own_row() + 8 * half;
                if (row < rows)
                    find_targets(target_start, target_token, row, first, [&](unsigned t, int at, int odd_at) {
#pragma unroll
                        for (int n = 0; n < ENTRIES / 8; ++n)
#pragma unroll
                            for (int odd = 0; odd < 2; ++odd)
                                if (n == at && odd == odd_at) target_logit[t] = l(n, half, odd) * scale;
                    });
                // In powers of two: one multiplication and one exponential a logit.
                const float shift = top * factor;
                float sum = 0.0f, weighted = 0.0f;
                each(l, half, [&](float x) {
                    const float log_e = x * factor - shift, e = fast_exp2(log_e);
                    sum += e;
                    weighted += e * log_e;
                });
                seen[half] = merge(seen[half], {top * scale, sum, weighted / LOG2_E});
            }
        }
        const size_t plane = static_cast<size_t>(splits) * rows;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Softmax s = seen[half];
            // Four lanes share a row.
#pragma unroll
            for (int step = 1; step < 4; step *= 2)
                s = merge(s, {__shfl_xor_sync(~0u, s.max, step), __shfl_xor_sync(~0u, s.sum, step),
                              __shfl_xor_sync(~0u, s.weighted, step)});
            const int row = first_row + own_row() + 8 * half;
            if (lane % 4 != 0 || row >= rows) continue;
            float* const out = partial + static_cast<size_t>(split) * rows + row;
            out[0] = s.max;
            out[plane] = s.sum;
            out[2 * plane] = s.weighted;
        }
    }
}

extern "C" __global__ void __launch_bounds__(384, 1)
    grouped_logprob_hopper_grad_bf16(const __grid_constant__ TensorMap hidden, const __grid_constant__ TensorMap w,
                                     const unsigned* __restrict__ target_start,
                                     const unsigned* __restrict__ target_token, const float* __restrict__ max,
                                     const float* __restrict__ log_sum, const float* __restrict__ entropy,
                                     const float* __restrict__ d_logprob, const float* __restrict__ d_entropy,
                                     bf16* __restrict__ d_logits, int rows, int vocab, int width, int stride, float scale) {
    EXPECTS(stride % 8 == 0 && stride >= vocab && blockDim.x == 128 * (GROUPS + 1));
    DYNAMIC_SHARED(unsigned char, dynamic);
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    // Rows first: blocks that run together share W's tiles.
    const int tall = (rows + ROWS - 1) / ROWS, tiles = tall * ((stride + ENTRIES - 1) / ENTRIES);
    Turn turn;
    shared.init();
    if (threadIdx.x >= 128 * GROUPS) {
        give_registers<24>();
        if (threadIdx.x == 128 * GROUPS)
            for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
                copy(shared, turn, &hidden, &w, tile % tall * ROWS, tile / tall * ENTRIES, width);
    } else {
        take_registers<240>();
        const int warp = threadIdx.x / 32;
        const float factor = scale * LOG2_E;
        Sums<ENTRIES> l;
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const int first_row = tile % tall * ROWS, first = tile / tall * ENTRIES;
            multiply(shared, turn, l, width);
            hide_beyond(l, vocab - first, factor);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row + own_row() + 8 * half;
                if (row >= rows) continue;
                float total = 0.0f, total_entropy = 0.0f;
                for (unsigned t = target_start[row]; t < target_start[row + 1]; ++t) {
                    total += d_logprob[t];
                    total_entropy += d_entropy[t];
                }
                // −p (total + total_entropy (ln p + entropy)), of ln p in powers of two.
                const float shift = (max[row] + log_sum[row]) * LOG2_E, slope = -total_entropy / LOG2_E;
                const float at_one = -total - total_entropy * entropy[row];
                if (slope == 0.0f) {
                    each(l, half, [&](float& x) { x = at_one * fast_exp2(x * factor - shift); });
                } else {
                    each(l, half, [&](float& x) {
                        const float log_p = x * factor - shift;
                        x = fast_exp2(log_p) * (at_one + slope * log_p);
                    });
                }
                find_targets(target_start, target_token, row, first, [&](unsigned t, int at, int odd_at) {
                    const float g = d_logprob[t];
#pragma unroll
                    for (int n = 0; n < ENTRIES / 8; ++n)
#pragma unroll
                        for (int odd = 0; odd < 2; ++odd)
                            if (n == at && odd == odd_at) l(n, half, odd) += g;
                });
            }
            const float scales[2] = {scale, scale};
            const int row = first_row + 16 * warp;
            boxes::store(d_logits + static_cast<size_t>(row) * stride + first, stride, rows - row, stride - first, l,
                         scales);
        }
    }
}
