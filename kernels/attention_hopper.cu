// The forward pass of kernels/attention.cu on Hopper (sm_90a): the same formula, the same statistics, by TMA copies and WGMMA
// products.
//
// qkv: a tensor map over bf16 [tokens, (heads + 2 kv_heads) · D], rotated, in boxes of 64 × 64, 128-byte swizzle; reach: u32, as
// many as there are tokens and then zeros up to a multiple of 128; tiles: as there, of 64 keys; order: u32 [tokens / QUERIES
// rounded up], the tiles of queries, those with the most to do first; o, softmax: as there.
//
// kernel (D = 64, 128)                    grid                        block             shared
// attention_hopper_forward_hd64_bf16      multiprocessors, at most    512, 192 queries  157,904
// attention_hopper_forward_hd128_bf16     heads · tiles of queries    384, 128 queries  164,976
// The last warpgroup gives up its registers; one thread of it copies. Each of the others has 64 queries of a tile, whose sums stay
// in registers. Tiles of 128 keys and values go round in stages of shared memory, so that the copies run ahead, into the block's
// next tile of queries too. Scores of a tile are multiplied while the values of the one before weigh in, and warpgroups take
// turns at asking for products, so that the exponentials of one hide under the products of another. Blocks go through tiles of
// queries forwards, then backwards: what is left over evens out.
//
// A warpgroup lets tiles go by that none of its queries sees.
//
// Flops: 4 D heads a visible pair. Floor on an H100 (800 TFLOP/s), one sequence of 8192, 16 heads of 128: 0.34 ms. Predicted:
// 550 to 620 TFLOP/s there (0.44 to 0.50 ms) and 400 with heads of 64; 450 and 330 in sequences of 1024. Checked by emulation only.
#include "common/boxes.cuh"
#include "common/reduce.cuh"

namespace {
constexpr int KEYS = 128;
// Below any score, yet finite.
constexpr float LOWEST = -1e30f;

template <int D>
struct Plan {
    static constexpr int GROUPS = D == 128 ? 2 : 3, QUERIES = 64 * GROUPS, STAGES = 256 / D;
    static constexpr int TILE = KEYS * D, THREADS = 128 * (GROUPS + 1);
    // What a stage's keys are.
    struct Tile {
        int first, least, greatest;  // key, and reach of any
        bool last;                   // of the tile of queries
    };
    bf16 q[QUERIES * D], k[STAGES][TILE], v[STAGES][TILE];
    unsigned reach[STAGES][KEYS];
    Tile tiles[STAGES];
    Mbarrier q_full, q_empty, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];

    // Tiles of queries, of all heads.
    __device__ static int items(int tokens, int heads) { return (tokens + QUERIES - 1) / QUERIES * heads; }
};
static_assert(sizeof(Plan<64>) == 157904 && sizeof(Plan<128>) == 164976, "the shared memory that the host gives");

// The tiles of queries of this block, with a head each: forwards, then backwards through the list.
struct Work {
    int turn = 0;
    __device__ int next(int count) {
        const int at = turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x, item = turn * gridDim.x + at;
        ++turn;
        return item < count ? item : -1;
    }
    // Of the mbarriers' phase that this turn is.
    __device__ int parity() const { return (turn - 1) % 2; }
};

// One thread: issues copies, as far ahead as stages are empty.
template <int D>
__device__ inline void produce(Plan<D>& plan, const TensorMap* qkv, const unsigned* reach, const unsigned* tiles,
                               const unsigned* order, int tokens, int heads, int kv_heads) {
    using P = Plan<D>;
    const int count = (tokens + KEYS / 2 - 1) / (KEYS / 2);
    const unsigned* const greatest = tiles + count;
    Work work;
    int step = 0;
    for (int item; (item = work.next(P::items(tokens, heads))) >= 0;) {
        const int q0 = P::QUERIES * static_cast<int>(order[item / heads]), q1 = min(q0 + P::QUERIES, tokens);
        const int head = item % heads, kv_head = heads + head / (heads / kv_heads), last = (q1 + KEYS - 1) / KEYS;
        const auto next = [&](int tile) {
            const auto sees = [&](int half) { return half < count && greatest[half] > static_cast<unsigned>(q0); };
            while (tile < last && !sees(2 * tile) && !sees(2 * tile + 1)) ++tile;
            return tile;
        };
        int tile = next(0);
        mbarrier_wait(&plan.q_empty, work.parity() ^ 1);
        mbarrier_arrive_expect(&plan.q_full, sizeof(plan.q));
        boxes::load<D, P::QUERIES>(plan.q, qkv, head * D, q0, &plan.q_full);
        while (tile < last) {
            const int following = next(tile + 1), k0 = tile * KEYS, stage = step % P::STAGES;
            const int parity = step / P::STAGES % 2 ^ 1;
            const auto half = [&](const unsigned* of, int none) {
                return 2 * tile + 1 < count ? static_cast<int>(of[2 * tile + 1]) : none;
            };
            mbarrier_wait(&plan.k_empty[stage], parity);
            auto& described = plan.tiles[stage];
            described.first = k0;
            described.least = min(static_cast<int>(tiles[2 * tile]), half(tiles, tokens));
            described.greatest = max(static_cast<int>(greatest[2 * tile]), half(greatest, 0));
            described.last = following >= last;
            mbarrier_arrive_expect(&plan.k_full[stage], sizeof(plan.k[0]) + sizeof(plan.reach[0]));
            boxes::load<D, KEYS>(plan.k[stage], qkv, kv_head * D, k0, &plan.k_full[stage]);
            bulk_copy(plan.reach[stage], reach + k0, sizeof(plan.reach[0]), &plan.k_full[stage]);
            mbarrier_wait(&plan.v_empty[stage], parity);
            mbarrier_arrive_expect(&plan.v_full[stage], sizeof(plan.v[0]));
            boxes::load<D, KEYS>(plan.v[stage], qkv, (kv_head + kv_heads) * D, k0, &plan.v_full[stage]);
            tile = following;
            ++step;
        }
    }
}

// A warpgroup: 64 queries of each tile.
template <int D>
__device__ inline void consume(Plan<D>& plan, const unsigned* order, bf16* o, float* softmax, int tokens, int heads,
                               float scale) {
    using P = Plan<D>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4;
    const float factor = scale * 1.44269504f;  // to powers of two
    const auto stage_of = [](int step) { return step % P::STAGES; };
    const auto parity_of = [](int step) { return step / P::STAGES % 2; };
    const auto release = [&](Mbarrier* empty) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty);
    };
    // Whose turn it is to ask for products.
    const auto take_turn = [&] { barrier_sync(1 + group, 256); };
    const auto pass_turn = [&] { barrier_arrive(1 + (group + 1) % P::GROUPS, 256); };

    Sums<KEYS> s;
    Sums<D> sum_v;
    Fragment p[KEYS / 16];
    float max[2], sum[2], keep[2];
    const bf16* const q_rows = plan.q + 64 * group * boxes::WIDTH;

    if (group == P::GROUPS - 1) pass_turn();
    Work work;
    int step = 0;
    for (int item; (item = work.next(P::items(tokens, heads))) >= 0;) {
        const int q0 = P::QUERIES * static_cast<int>(order[item / heads]);
        const int first = q0 + 64 * group, row = q0 + 16 * warp + lane / 4;
        // Scores to probabilities, not divided by their sum yet; whether the tile was the last.
        const auto exponentiate = [&](int step) {
            const int stage = stage_of(step);
            const auto tile = plan.tiles[stage];
            if (tile.last) release(&plan.q_empty);
            if (tile.first + KEYS - 1 > first || tile.least < min(first + 64, tokens)) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd) {
                        const int column = 8 * n + 2 * (lane % 4) + odd, key = tile.first + column;
                        const int reach = static_cast<int>(plan.reach[stage][column]);
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            const int query = row + 8 * half;
                            float& x = s(n, half, odd);
                            x = key <= query && query < reach ? x : -INFINITY;
                        }
                    }
            }
            release(&plan.k_empty[stage]);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = max[half], total = 0.0f;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) top = fmaxf(top, fmaxf(s(n, half, 0), s(n, half, 1)));
                top = row_max(top);
                keep[half] = fast_exp2((max[half] - top) * factor);
                const float shift = top * factor;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd)
                        total += s(n, half, odd) = fast_exp2(s(n, half, odd) * factor - shift);
                max[half] = top;
                sum[half] = sum[half] * keep[half] + total;
            }
            return tile.last;
        };
        // Waits for the keys of a step; whether any of this warpgroup's queries sees one.
        const auto sees = [&](int step) {
            mbarrier_wait(&plan.k_full[stage_of(step)], parity_of(step));
            const auto& tile = plan.tiles[stage_of(step)];
            return tile.first < first + 64 && tile.greatest > first;
        };
        // Lets a tile go by; whether it was the last.
        const auto skip = [&](int step) {
            const int stage = stage_of(step);
            const bool last = plan.tiles[stage].last;
            take_turn();
            pass_turn();
            if (last) release(&plan.q_empty);
            release(&plan.k_empty[stage]);
            mbarrier_wait(&plan.v_full[stage], parity_of(step));
            release(&plan.v_empty[stage]);
            return last;
        };
        const auto weigh = [&](int step) {
            mbarrier_wait(&plan.v_full[stage_of(step)], parity_of(step));
            boxes::weigh<KEYS>(sum_v, p, plan.v[stage_of(step)], true);
        };
        // Of a tile of scores: what the sums so far count for, and the probabilities as an operand.
        const auto take_in = [&] {
            each(sum_v, [&](float& x, int half, int) { x *= keep[half]; });
            boxes::pack(p, s);
        };
        max[0] = max[1] = LOWEST;
        sum[0] = sum[1] = 0.0f;
        each(sum_v, [](float& x, int, int) { x = 0.0f; });
        mbarrier_wait(&plan.q_full, work.parity());
        for (bool last = false; !last; ++step) {
            if (!sees(step)) {
                last = skip(step);
                continue;
            }
            // Tiles that follow each other: the scores of one are multiplied while the values of the one before weigh in.
            take_turn();
            boxes::multiply<D, P::QUERIES>(s, q_rows, plan.k[stage_of(step)]);
            pass_turn();
            product_wait<0>(s);
            last = exponentiate(step);
            take_in();
            for (; !last && sees(step + 1); ++step) {
                take_turn();
                boxes::multiply<D, P::QUERIES>(s, q_rows, plan.k[stage_of(step + 1)]);
                weigh(step);
                pass_turn();
                product_wait<1>(s);
                last = exponentiate(step + 1);
                if (is_negative(fminf(sum[0], sum[1]))) {
                    product_wait<0>(sum_v, p);
                    return;
                }
                product_wait<0>(sum_v, p);
                release(&plan.v_empty[stage_of(step)]);
                take_in();
            }
            weigh(step);
            product_wait<0>(sum_v, p);
            release(&plan.v_empty[stage_of(step)]);
        }

        const int head = item % heads;
        float inverse[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            inverse[half] = 1.0f / row_sum(sum[half]);
            const int query = row + 8 * half;
            if (lane % 4 == 0 && query < tokens) {
                float* const kept = softmax + 2 * (static_cast<size_t>(query) * heads + head);
                kept[0] = max[half] * scale;
                kept[1] = inverse[half];
            }
        }
        const size_t at = (static_cast<size_t>(q0 + 16 * warp) * heads + head) * D;
        boxes::store(o + at, static_cast<size_t>(heads) * D, tokens - q0 - 16 * warp, D, sum_v, inverse);
    }
}

// Registers of a thread: those of the launch, and of a thread that copies and one that computes.
template <int D, int COPIES, int COMPUTES>
__device__ inline void forward(const TensorMap* qkv, const unsigned* reach, const unsigned* tiles, const unsigned* order,
                               bf16* o, float* softmax, int tokens, int heads, int kv_heads, float scale) {
    using P = Plan<D>;
    EXPECTS(heads % kv_heads == 0 && blockDim.x == P::THREADS && scale > 0.0f);
    DYNAMIC_SHARED(unsigned char, shared);
    P& plan = *reinterpret_cast<P*>(shared);
    if (threadIdx.x == 0) {
        const auto pair = [](Mbarrier* full, Mbarrier* empty) {
            mbarrier_init(full, 1);
            mbarrier_init(empty, 4 * P::GROUPS);  // warps
        };
        pair(&plan.q_full, &plan.q_empty);
        for (int i = 0; i < P::STAGES; ++i) {
            pair(&plan.k_full[i], &plan.k_empty[i]);
            pair(&plan.v_full[i], &plan.v_empty[i]);
        }
        show_mbarriers();
    }
    __syncthreads();
    if (threadIdx.x >= 128 * P::GROUPS) {
        give_registers<COPIES>();
        if (threadIdx.x == 128 * P::GROUPS) produce<D>(plan, qkv, reach, tiles, order, tokens, heads, kv_heads);
    } else {
        take_registers<COMPUTES>();
        consume<D>(plan, order, o, softmax, tokens, heads, scale);
    }
}
}  // namespace

extern "C" __global__ void __launch_bounds__(512, 1)
    attention_hopper_forward_hd64_bf16(const __grid_constant__ TensorMap qkv, const unsigned* __restrict__ reach,
                                       const unsigned* __restrict__ tiles, const unsigned* __restrict__ order,
                                       bf16* __restrict__ o, float* __restrict__ softmax, int tokens, int heads,
                                       int kv_heads, float scale) {
    forward<64, 32, 160>(&qkv, reach, tiles, order, o, softmax, tokens, heads, kv_heads, scale);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_hopper_forward_hd128_bf16(const __grid_constant__ TensorMap qkv, const unsigned* __restrict__ reach,
                                        const unsigned* __restrict__ tiles, const unsigned* __restrict__ order,
                                        bf16* __restrict__ o, float* __restrict__ softmax, int tokens, int heads,
                                        int kv_heads, float scale) {
    forward<128, 24, 240>(&qkv, reach, tiles, order, o, softmax, tokens, heads, kv_heads, scale);
}
