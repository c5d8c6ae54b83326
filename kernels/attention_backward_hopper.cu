// The backward pass of kernels/attention.cu on Hopper (sm_90a): the same formulas, owners and order of sums, by TMA copies and
// WGMMA products.
//
// qkv, d_o: tensor maps over bf16 [tokens, (heads + 2 kv_heads) · D] and [tokens, heads · D], in boxes of 64 × 64, 128-byte swizzle;
// softmax, reach, tiles, d_qkv as there, reach with zeros up to a multiple of 128; rows: f32 [heads, 2, tokens rounded up to 64],
// of each query the shift of its exponents (log2 of what its probabilities are divided by), and delta; order: u32, tiles of 128
// keys or queries, those with the most to do first.
//
// kernel (D = 64, 128)                     grid (quotients rounded up)   block  shared               flops a visible pair, or bytes
// attention_backward_hopper_rows_hdD_bf16  tokens (to 64) · heads · D / 2048   256   0                    4 D + 16 a row
// attention_backward_hopper_kv_hdD_bf16    (kv_heads, tokens / 128)      384    1280 D + 1616        8 D heads
// attention_backward_hopper_q_hdD_bf16     (heads, tokens / 128)         384    1280 D + 848         6 D heads
// A warpgroup that computes has 64 keys (or queries) of its block's 128, whose sums stay in registers, as do P and dS on their way
// into the next product; the third warpgroup gives up its registers, and one thread of it copies tiles of 64 three stages ahead.
// One warpgroup's exponentials hide under the other's products.
//
// Floor on an H100 (800 TFLOP/s), one sequence of 8192, 16 heads of 128: 0.86 ms for the five products it takes, 1.2 ms for the
// seven that separate owners make of them. Predicted: 1.9 to 2.3 ms (300 to 360 TFLOP/s of the five). Checked by emulation only.
#include "common/boxes.cuh"
#include "common/reduce.cuh"

namespace {
constexpr int OWN = 128, TILE = 64, STAGES = 3, GROUPS = 2;
constexpr float LOG2_E = 1.44269504f;

// Of two queries, for one load.
struct alignas(8) Two {
    float of[2];
};

// P of a score.
__device__ inline float probability(float score, float factor, float shift) { return fast_exp2(score * factor - shift); }

// A row's chunk of 8 columns for each thread.
template <int D>
__device__ inline void backward_rows(const bf16* d_o, const bf16* o, const float* softmax, float* rows, int tokens,
                                     int heads) {
    constexpr int LANES = D / 8;
    const int at = blockDim.x * blockIdx.x + threadIdx.x, row = at / LANES, query = row / heads, head = row % heads;
    const int padded = (tokens + TILE - 1) / TILE * TILE;
    const float sum = row_dot<LANES>(d_o, o, at, query < tokens);
    if (query < padded && at % LANES == 0) {
        const float* const kept = softmax + 2 * static_cast<size_t>(row);
        float* const to = rows + 2 * static_cast<size_t>(head) * padded + query;
        // A query that does not exist has no weight.
        to[0] = query < tokens ? kept[0] * LOG2_E - log2f(kept[1]) : INFINITY;
        to[padded] = sum;
    }
}

// What two matrices of a block's own rows and stages of tiles of two others take.
template <int D>
struct Shared {
    bf16 own[2][OWN * D], tiles[STAGES][2][TILE * D];
    Mbarrier own_full, full[STAGES][2], empty[STAGES];

    __device__ void init() {
        if (threadIdx.x == 0) {
            mbarrier_init(&own_full, 1);
            for (int i = 0; i < STAGES; ++i) {
                mbarrier_init(&full[i][0], 1);
                mbarrier_init(&full[i][1], 1);
                mbarrier_init(&empty[i], 4 * GROUPS);  // warps
            }
            show_mbarriers();
        }
        __syncthreads();
    }

    // By one thread: the columns `x` of `first` rows on of two matrices.
    __device__ void load_own(const TensorMap* a, int x, const TensorMap* b, int y, int first) {
        mbarrier_arrive_expect(&own_full, sizeof(own));
        boxes::load<D, OWN>(own[0], a, x, first, &own_full);
        boxes::load<D, OWN>(own[1], b, y, first, &own_full);
    }

    // By a warp.
    __device__ void release(int stage) {
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage]);
    }

    // By a warp whose rows have nothing to do with a stage's.
    __device__ void skip(int stage, int parity) {
        mbarrier_wait(&full[stage][0], parity);
        mbarrier_wait(&full[stage][1], parity);
        release(stage);
    }
};

template <int D>
struct SharedKv : Shared<D> {
    Two shift[STAGES][TILE / 2], delta[STAGES][TILE / 2];
};

template <int D>
struct SharedQ : Shared<D> {
    unsigned reach[STAGES][TILE];
};

// 128 keys and all the queries that see them.
template <int D>
__device__ inline void backward_kv(const TensorMap* d_o, const TensorMap* qkv, const float* rows, const unsigned* reach,
                                   const unsigned* tiles, const unsigned* order, bf16* d_qkv, int tokens, int heads,
                                   int kv_heads, float scale) {
    EXPECTS(heads % kv_heads == 0 && blockDim.x == 128 * (GROUPS + 1) && scale > 0.0f);
    DYNAMIC_SHARED(unsigned char, dynamic);
    SharedKv<D>& shared = *reinterpret_cast<SharedKv<D>*>(dynamic);
    const int kv_head = blockIdx.x, of_kv_head = heads / kv_heads, tile = order[blockIdx.y], k0 = OWN * tile;
    const int count = (tokens + TILE - 1) / TILE, padded = count * TILE;
    const unsigned* const greatest = tiles + count;
    const int low = greatest[2 * tile], high = 2 * tile + 1 < count ? static_cast<int>(greatest[2 * tile + 1]) : 0;
    const int end = low > high ? low : high, first = k0 / TILE, queries = (end + TILE - 1) / TILE - first;
    const int steps = of_kv_head * queries;
    shared.init();
    if (threadIdx.x >= 128 * GROUPS) {
        give_registers<24>();
        if (threadIdx.x > 128 * GROUPS) return;
        shared.load_own(qkv, (heads + kv_head) * D, qkv, (heads + kv_heads + kv_head) * D, k0);
        for (int step = 0; step < steps; ++step) {
            const int stage = step % STAGES, head = kv_head * of_kv_head + step / queries;
            const int q0 = TILE * (first + step % queries);
            mbarrier_wait(&shared.empty[stage], step / STAGES % 2 ^ 1);
            Mbarrier* const full = shared.full[stage];
            const float* const of_head = rows + 2 * static_cast<size_t>(head) * padded + q0;
            mbarrier_arrive_expect(&full[0], sizeof(shared.tiles[0][0]) + sizeof(shared.shift[0]));
            boxes::load<D, TILE>(shared.tiles[stage][0], qkv, head * D, q0, &full[0]);
            bulk_copy(shared.shift[stage], of_head, sizeof(shared.shift[0]), &full[0]);
            mbarrier_arrive_expect(&full[1], sizeof(shared.tiles[0][1]) + sizeof(shared.delta[0]));
            boxes::load<D, TILE>(shared.tiles[stage][1], d_o, head * D, q0, &full[1]);
            bulk_copy(shared.delta[stage], of_head + padded, sizeof(shared.delta[0]), &full[1]);
        }
    } else {
        take_registers<240>();
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4, own0 = k0 + 64 * group;
        const int least = group == 0 || 2 * tile + 1 < count ? static_cast<int>(tiles[2 * tile + group]) : 0;
        const int own_end = group == 0 ? low : high;
        const bf16* const keys = shared.own[0] + 64 * group * boxes::WIDTH;
        const bf16* const values = shared.own[1] + 64 * group * boxes::WIDTH;
        const float factor = scale * LOG2_E;
        int key_end[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) key_end[half] = reach[k0 + 16 * warp + lane / 4 + 8 * half];
        Sums<D> d_k, d_v;
        each(d_k, [](float& x, int, int) { x = 0.0f; });
        each(d_v, [](float& x, int, int) { x = 0.0f; });
        mbarrier_wait(&shared.own_full, 0);
        for (int step = 0; step < steps; ++step) {
            const int stage = step % STAGES, parity = step / STAGES % 2, q0 = TILE * (first + step % queries);
            if (own0 >= q0 + TILE || own_end <= q0) {
                shared.skip(stage, parity);
                continue;
            }
            Sums<TILE> p_sums, s_sums;
            Fragment p[TILE / 16], d_s[TILE / 16];
            const bf16* const q_rows = shared.tiles[stage][0];
            const bf16* const do_rows = shared.tiles[stage][1];
            mbarrier_wait(&shared.full[stage][0], parity);
            boxes::multiply<D, OWN>(p_sums, keys, q_rows);
            mbarrier_wait(&shared.full[stage][1], parity);
            boxes::multiply<D, OWN>(s_sums, values, do_rows);
            product_wait<1>(p_sums);
            if (own0 + 63 > q0 || least < min(q0 + TILE, tokens)) {
                each(p_sums, [&](float& x, int half, int column) {
                    const int query = q0 + column, key = k0 + 16 * warp + lane / 4 + 8 * half;
                    x = key <= query && query < key_end[half] ? x : -INFINITY;
                });
            }
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) {
                const Two shift = shared.shift[stage][4 * n + lane % 4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float& x = p_sums(n, i / 2, i % 2);
                    x = probability(x, factor, shift.of[i % 2]);
                }
            }
            boxes::pack(p, p_sums);
            boxes::weigh<TILE>(d_v, p, do_rows, true);
            product_wait<1>(s_sums);
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) {
                const Two delta = shared.delta[stage][4 * n + lane % 4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float& x = s_sums(n, i / 2, i % 2);
                    x = p_sums(n, i / 2, i % 2) * (x - delta.of[i % 2]);
                }
            }
            boxes::pack(d_s, s_sums);
            boxes::weigh<TILE>(d_k, d_s, q_rows, true);
            product_wait<0>(p, d_s, d_k, d_v);
            shared.release(stage);
        }
        const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
        const int key = k0 + 16 * warp, row_len = (heads + 2 * kv_heads) * D;
        bf16* const to = d_qkv + static_cast<size_t>(key) * row_len + (heads + kv_head) * D;
        boxes::store(to, row_len, tokens - key, D, d_k, scales);
        boxes::store(to + kv_heads * D, row_len, tokens - key, D, d_v, ones);
    }
}

// 128 queries of a head and all the keys they see.
template <int D>
__device__ inline void backward_q(const TensorMap* d_o, const TensorMap* qkv, const float* rows, const unsigned* reach,
                                  const unsigned* tiles, const unsigned* order, bf16* d_qkv, int tokens, int heads,
                                  int kv_heads, float scale) {
    EXPECTS(heads % kv_heads == 0 && blockDim.x == 128 * (GROUPS + 1) && scale > 0.0f);
    DYNAMIC_SHARED(unsigned char, dynamic);
    SharedQ<D>& shared = *reinterpret_cast<SharedQ<D>*>(dynamic);
    const int head = blockIdx.x, kv_head = heads + head / (heads / kv_heads);
    const int q0 = OWN * static_cast<int>(order[blockIdx.y]), q1 = min(q0 + OWN, tokens);
    const int count = (tokens + TILE - 1) / TILE, last = (q1 + TILE - 1) / TILE;
    const auto next = [&](int tile) {
        while (tile < last && tiles[count + tile] <= static_cast<unsigned>(q0)) ++tile;
        return tile;
    };
    shared.init();
    if (threadIdx.x >= 128 * GROUPS) {
        give_registers<24>();
        if (threadIdx.x > 128 * GROUPS) return;
        shared.load_own(qkv, head * D, d_o, head * D, q0);
        int step = 0;
        for (int tile = next(0); tile < last; tile = next(tile + 1), ++step) {
            const int stage = step % STAGES, k0 = TILE * tile;
            mbarrier_wait(&shared.empty[stage], step / STAGES % 2 ^ 1);
            Mbarrier* const full = shared.full[stage];
            mbarrier_arrive_expect(&full[0], sizeof(shared.tiles[0][0]) + sizeof(shared.reach[0]));
            boxes::load<D, TILE>(shared.tiles[stage][0], qkv, kv_head * D, k0, &full[0]);
            bulk_copy(shared.reach[stage], reach + k0, sizeof(shared.reach[0]), &full[0]);
            mbarrier_arrive_expect(&full[1], sizeof(shared.tiles[0][1]));
            boxes::load<D, TILE>(shared.tiles[stage][1], qkv, (kv_head + kv_heads) * D, k0, &full[1]);
        }
    } else {
        take_registers<240>();
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4, own0 = q0 + 64 * group;
        const int own1 = min(own0 + 64, tokens), query = q0 + 16 * warp + lane / 4;
        const bf16* const queries = shared.own[0] + 64 * group * boxes::WIDTH;
        const bf16* const d_outs = shared.own[1] + 64 * group * boxes::WIDTH;
        const float factor = scale * LOG2_E;
        // Beyond the tokens' last tile of 64 there are no rows.
        const int padded = count * TILE;
        float shift[2], delta[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* const of = rows + 2 * static_cast<size_t>(head) * padded + query + 8 * half;
            shift[half] = query + 8 * half < padded ? of[0] : INFINITY;
            delta[half] = query + 8 * half < padded ? of[padded] : 0.0f;
        }
        Sums<D> d_q;
        each(d_q, [](float& x, int, int) { x = 0.0f; });
        mbarrier_wait(&shared.own_full, 0);
        int step = 0;
        for (int tile = next(0); tile < last; tile = next(tile + 1), ++step) {
            const int stage = step % STAGES, parity = step / STAGES % 2, k0 = TILE * tile;
            if (k0 >= own1 || static_cast<int>(tiles[count + tile]) <= own0) {
                shared.skip(stage, parity);
                continue;
            }
            Sums<TILE> p_sums, s_sums;
            Fragment d_s[TILE / 16];
            const bf16* const k_rows = shared.tiles[stage][0];
            mbarrier_wait(&shared.full[stage][0], parity);
            boxes::multiply<D, OWN>(p_sums, queries, k_rows);
            mbarrier_wait(&shared.full[stage][1], parity);
            boxes::multiply<D, OWN>(s_sums, d_outs, shared.tiles[stage][1]);
            product_wait<1>(p_sums);
            if (k0 + TILE - 1 > own0 || static_cast<int>(tiles[tile]) < own1) {
                each(p_sums, [&](float& x, int half, int column) {
                    const int key = k0 + column, at = query + 8 * half;
                    x = key <= at && at < static_cast<int>(shared.reach[stage][column]) ? x : -INFINITY;
                });
            }
            each(p_sums, [&](float& x, int half, int) { x = probability(x, factor, shift[half]); });
            unsigned all = 0;
            each(p_sums, [&](float x, int, int) { all |= __float_as_uint(x); });
            if (is_negative(__uint_as_float(all))) {
                product_wait<0>(s_sums);
                return;
            }
            product_wait<0>(s_sums);
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd)
                        s_sums(n, half, odd) = p_sums(n, half, odd) * (s_sums(n, half, odd) - delta[half]);
            boxes::pack(d_s, s_sums);
            boxes::weigh<TILE>(d_q, d_s, k_rows, true);
            product_wait<0>(d_s, d_q);
            shared.release(stage);
        }
        const float scales[2] = {scale, scale};
        const int row_len = (heads + 2 * kv_heads) * D;
        bf16* const to = d_qkv + static_cast<size_t>(q0 + 16 * warp) * row_len + head * D;
        boxes::store(to, row_len, tokens - q0 - 16 * warp, D, d_q, scales);
    }
}
static_assert(sizeof(SharedKv<64>) == 1280 * 64 + 1616 && sizeof(SharedKv<128>) == 1280 * 128 + 1616 &&
                  sizeof(SharedQ<64>) == 1280 * 64 + 848 && sizeof(SharedQ<128>) == 1280 * 128 + 848,
              "the shared memory that the host gives");
}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    attention_backward_hopper_rows_hd64_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ o,
                                             const float* __restrict__ softmax, float* __restrict__ rows, int tokens,
                                             int heads) {
    backward_rows<64>(d_o, o, softmax, rows, tokens, heads);
}

extern "C" __global__ void __launch_bounds__(256)
    attention_backward_hopper_rows_hd128_bf16(const bf16* __restrict__ d_o, const bf16* __restrict__ o,
                                             const float* __restrict__ softmax, float* __restrict__ rows, int tokens,
                                             int heads) {
    backward_rows<128>(d_o, o, softmax, rows, tokens, heads);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_hopper_kv_hd64_bf16(
    const __grid_constant__ TensorMap d_o, const __grid_constant__ TensorMap qkv, const float* __restrict__ rows,
    const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles, const unsigned* __restrict__ order,
    bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_kv<64>(&d_o, &qkv, rows, reach, tiles, order, d_qkv, tokens, heads, kv_heads,
                    scale);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_hopper_kv_hd128_bf16(
    const __grid_constant__ TensorMap d_o, const __grid_constant__ TensorMap qkv, const float* __restrict__ rows,
    const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles, const unsigned* __restrict__ order,
    bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_kv<128>(&d_o, &qkv, rows, reach, tiles, order, d_qkv, tokens, heads, kv_heads,
                    scale);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_hopper_q_hd64_bf16(
    const __grid_constant__ TensorMap d_o, const __grid_constant__ TensorMap qkv, const float* __restrict__ rows,
    const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles, const unsigned* __restrict__ order,
    bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_q<64>(&d_o, &qkv, rows, reach, tiles, order, d_qkv, tokens, heads, kv_heads,
                    scale);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_backward_hopper_q_hd128_bf16(
    const __grid_constant__ TensorMap d_o, const __grid_constant__ TensorMap qkv, const float* __restrict__ rows,
    const unsigned* __restrict__ reach, const unsigned* __restrict__ tiles, const unsigned* __restrict__ order,
    bf16* __restrict__ d_qkv, int tokens, int heads, int kv_heads, float scale) {
    backward_q<128>(&d_o, &qkv, rows, reach, tiles, order, d_qkv, tokens, heads, kv_heads,
                    scale);
}
