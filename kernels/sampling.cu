// Sampling as src/ops/sampling.rs: repetition penalty, temperature, top-k, top-p, min-p, in that order, then one draw by inverting
// the cumulative distribution at a uniform number; at temperature 0 the first of the largest logits.
//
// logits: f32 [rows, stride], of which the first `vocab` columns count, stride a multiple of 4; seen: u32, the tokens of row r's
// sequence so far at seen_start[r] … seen_start[r + 1] (both unread without a penalty); uniform: f32 [rows], in (0, 1); token: u32
// [rows]; logprob: f32 [rows], of the token under softmax(logits / temperature), before penalty and truncation.
//
// Nothing is sorted. Probabilities are integers, in units of 2⁻⁴⁴ of the likeliest token's: their sums do not depend on the order
// of adding, so atomics give the same bits every time, and what is found coarsely first is found exactly in the end. A threshold
// (top-k: by count; top-p: by probability) is found digit by digit of the logits' bits, 8 at a time, by a histogram; a token
// by dividing the row by 32 until 4 are left.
//
// Grid: rows. Block: 1024. Dynamic shared memory: vocab / 8 bytes rounded up to 4 with a penalty, else none.
// Bytes moved: 4 · vocab a pass over the row. Passes: 3, and 4 for top-k, 5 for top-p. Floor on an H100 (3.0 TB/s), 256 rows of
// 151936: 0.16 ms with temperature alone. Checked by emulation only.
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace {
using Sum = unsigned long long;
constexpr int THREADS = 1024, WARPS = THREADS / 32;
// Copies of each bin, for lanes to collide less.
constexpr int BINS = 256, COPIES = 8;

struct Params {
    float temperature, penalty;
    int top_k;           // 0: all
    float top_p, min_p;  // min_p: its logarithm
};

// Bits in the order of the numbers.
__device__ inline unsigned key_of(float x) {
    const unsigned u = __float_as_uint(x);
    return u >> 31 ? ~u : u | 0x80000000u;
}
__device__ inline float of_key(unsigned key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// Adds to a sum in shared memory by words, whose carry comes out the same in any order: a 64-bit atomic there is a loop of
// compare-and-swaps.
__device__ inline void add(Sum* sum, Sum x) {
    unsigned* const words = reinterpret_cast<unsigned*>(sum);
    const unsigned low = static_cast<unsigned>(x), before = atomicAdd(&words[0], low);
    const unsigned high = static_cast<unsigned>(x >> 32) + (before + low < before);
    if (high != 0) atomicAdd(&words[1], high);
}

// exp(x) of an x ≤ 0, in units of 2⁻⁴⁴.
__device__ inline Sum mass(float x) { return static_cast<Sum>(expf(x) * 0x1p44f); }

// One row, and the block's shared memory.
struct Row {
    const float* logits;
    int vocab;
    const unsigned* seen;  // one bit for each token; null without a penalty
    float penalty, divisor;
    Sum* bins;    // [BINS, COPIES]
    Sum* pieces;  // [WARPS]

    // After penalty and temperature.
    __device__ float value(int token, float logit) const {
        if (seen && seen[token / 32] >> token % 32 & 1) logit = logit > 0.0f ? logit / penalty : logit * penalty;
        return logit / divisor;
    }

    __device__ int chunks() const { return (vocab + 3) / 4; }

    // f(token, logit) of the chunks of 4 tokens first, first + step, … below `end`.
    template <class F>
    __device__ void each(int first, int end, int step, F f) const {
        for (int chunk = first; chunk < end; chunk += step) {
            const uint4 raw = load16(logits + 4 * chunk);
            const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (4 * chunk + i < vocab) f(4 * chunk + i, __uint_as_float(words[i]));
        }
    }
    template <class F>
    __device__ void each(F f) const {
        each(threadIdx.x, chunks(), THREADS, f);
    }
};

__device__ inline float block_max(float x, float* partial) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = partial[threadIdx.x % 32];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

__device__ inline Sum sum_of(const Sum* pieces) {
    Sum sum = 0;
    for (int i = 0; i < WARPS; ++i) sum += pieces[i];
    return sum;
}

// The first of `n` whose running sum passes `target`, which is left with what it exceeds those before by.
template <class Part>
__device__ inline int pass(int n, Sum& target, Part part) {
    int at = 0;
    for (; at < n - 1; ++at) {
        const Sum x = part(at);
        if (x > target) break;
        target -= x;
    }
    return at;
}

// The first token at which the running sum of weigh(token, value) passes aim(sum of all), or 0 if none does.
template <class Weigh, class Aim>
__device__ inline int find(const Row& row, Weigh weigh, Aim aim) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int from = 0, chunks = row.chunks();
    Sum target = 0;
    for (bool whole = true;; whole = false) {
        const int piece = (chunks + WARPS - 1) / WARPS, start = from + warp * piece;
        Sum sum = 0;
        row.each(start + lane, min(start + piece, from + chunks), 32,
                 [&](int token, float logit) { sum += weigh(token, row.value(token, logit)); });
        sum = warp_sum(sum);
        if (lane == 0) row.pieces[warp] = sum;
        __syncthreads();
        const Sum total = whole ? sum_of(row.pieces) : 0;
        if (whole) target = aim(total);
        const int at = pass(WARPS, target, [&](int i) { return row.pieces[i]; });
        __syncthreads();
        if (whole && target >= total) return 0;
        from += at * piece;
        chunks = min(piece, chunks - at * piece);
        if (piece == 1) break;
    }
    return 4 * from + pass(min(4, row.vocab - 4 * from), target, [&](int i) {
        const int token = 4 * from + i;
        return weigh(token, row.value(token, row.logits[token]));
    });
}

// The smallest key at which the sum of weigh(value) over the tokens of this and smaller keys passes aim(sum of all); `target` is
// what aim says less the sum of the smaller keys.
template <class Weigh, class Aim>
__device__ inline unsigned select(const Row& row, Weigh weigh, Aim aim, Sum& target) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < BINS * COPIES; i += THREADS) row.bins[i] = 0;
        __syncthreads();
        row.each([&](int token, float logit) {
            const float value = row.value(token, logit);
            const unsigned key = key_of(value);
            if (shift == 24 || key >> (shift + 8) == prefix)
                add(&row.bins[(key >> shift) % BINS * COPIES + lane % COPIES], weigh(value));
        });
        __syncthreads();
        // A warp's share is 8 bins: two entries for each lane.
        const Sum* const own = row.bins + warp * (BINS / WARPS * COPIES);
        const Sum sum = warp_sum(own[lane] + own[32 + lane]);
        if (lane == 0) row.pieces[warp] = sum;
        __syncthreads();
        if (shift == 24) target = aim(sum_of(row.pieces));
        const int share = pass(WARPS, target, [&](int i) { return row.pieces[i]; });
        const int bin = share * (BINS / WARPS) + pass(BINS / WARPS, target, [&](int i) {
            const Sum* const copies = row.bins + (share * (BINS / WARPS) + i) * COPIES;
            Sum all = 0;
            for (int c = 0; c < COPIES; ++c) all += copies[c];
            return all;
        });
        prefix = prefix << 8 | bin;
        __syncthreads();
    }
    return prefix;
}

// A draw of the tokens that no filter drops; `largest` is the largest value.
__device__ inline int draw(const Row& row, const Params& params, float largest, float uniform) {
    float floor = -INFINITY;  // smaller values are dropped,
    unsigned edge = 0;        // those of smaller keys,
    int first = 0;            // and those of this very key before this token
    Sum left = 0;
    if (params.top_k > 0 && params.top_k < row.vocab) {
        const auto one = [](float) { return Sum(1); };
        floor = of_key(select(row, one, [&](Sum) { return Sum(row.vocab - params.top_k); }, left));
    }
    if (params.top_p < 1.0f) {
        const auto weigh = [&](float value) { return value >= floor ? mass(value - largest) : Sum(0); };
        const auto dropped = [&](Sum total) {
            const Sum most = static_cast<Sum>((1.0 - static_cast<double>(params.top_p)) * static_cast<double>(total));
            return most < total ? most : total - 1;  // one stays
        };
        edge = select(row, weigh, dropped, left);
        const Sum ties = left / mass(of_key(edge) - largest);
        if (ties > 0)
            first = find(row, [&](int, float value) { return Sum(key_of(value) == edge); }, [&](Sum) { return ties; });
    }
    floor = fmaxf(floor, largest + params.min_p);
    const auto weigh = [&](int token, float value) {
        const unsigned key = key_of(value);
        const bool kept = value >= floor && (key > edge || (key == edge && token >= first));
        return kept ? mass(value - largest) : Sum(0);
    };
    return find(row, weigh, [&](Sum total) {
        return static_cast<Sum>(static_cast<double>(uniform) * static_cast<double>(total));
    });
}
}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    sampling_sample_f32(const float* __restrict__ logits, const unsigned* __restrict__ seen,
                        const unsigned* __restrict__ seen_start, const float* __restrict__ uniform,
                        unsigned* __restrict__ token, float* __restrict__ logprob, int vocab, int stride, Params params) {
    EXPECTS(stride % 4 == 0 && 0 < vocab && vocab <= stride && blockDim.x == THREADS);
    DYNAMIC_SHARED(unsigned, bits);
    SHARED(Sum, bins, BINS * COPIES);
    SHARED(Sum, pieces, WARPS);
    SHARED(float, maxima, 2 * WARPS);
    const int at = blockIdx.x;
    const bool greedy = !(params.temperature > 0.0f), penalised = params.penalty != 1.0f;
    if (penalised) {
        for (int i = threadIdx.x; i < (vocab + 31) / 32; i += THREADS) bits[i] = 0;
        __syncthreads();
        for (unsigned i = seen_start[at] + threadIdx.x; i < seen_start[at + 1]; i += THREADS)
            atomicOr(&bits[seen[i] / 32], 1u << seen[i] % 32);
        __syncthreads();
    }
    const Row row = {logits + static_cast<size_t>(at) * stride, vocab, penalised ? bits : nullptr, params.penalty,
                     greedy ? 1.0f : params.temperature, bins, pieces};

    float plain = -INFINITY, largest = -INFINITY;
    row.each([&](int i, float logit) {
        plain = fmaxf(plain, logit);
        largest = fmaxf(largest, row.value(i, logit));
    });
    plain = block_max(plain, maxima);
    largest = block_max(largest, maxima + WARPS);
    const float scale = 1.0f / row.divisor;
    Sum total = 0;
    row.each([&](int, float logit) { total += mass((logit - plain) * scale); });
    total = block_sum(total);

    int found;
    if (greedy) {
        found = find(row, [&](int, float value) { return Sum(value == largest); }, [](Sum) { return Sum(0); });
    } else {
        found = draw(row, params, largest, uniform[at]);
    }
    if (threadIdx.x == 0) {
        token[at] = found;
        logprob[at] = (row.logits[found] - plain) * scale - logf(static_cast<float>(total) * 0x1p-44f);
    }
}
