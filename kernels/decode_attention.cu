// Attention of single queries over a paged cache: o = Σ_j softmax_j(q·k_j · scale) v_j over the keys j ≤ position of the row's
// sequence. Rows may be of many sequences (decoding) or many of one (prefill); append comes first: it rotates their queries where they
// are, and puts their rotated keys and their values in the cache (see rope.cu).
//
// cache: bf16 [pages, layers, kv_heads, 2 (keys, values), PAGE, D], from the layer's place in page 0 on, with page_stride elements
// from one page to the next; table: u32 [sequences, table_len], the pages of each sequence in order; sequence, position: u32
// [rows], no two of one place in append (unless they are equal). qkv: bf16 [rows, (heads + 2 kv_heads) · D]; o: bf16 [rows, heads ·
// D]; cos, sin: f32 [positions, D / 2]. Contexts are cut every SPLIT keys, wherever they are, so that a row's bits do not depend on its company. With more than one split
// (gridDim.z), sums: f32 [rows, heads, splits, D] and stats: f32 [rows, heads, splits, 2] (maximum of scaled scores, sum of
// exponentials) hold the parts, and the combine kernel adds them in order; with one, o is written at once.
//
// kernel (D = 64, 128)                grid (rounded up)                    block  bytes
// decode_attention_append_bf16        rows · all heads · D / 4096          256    4 D a head and row
// decode_attention_hdD_bf16           (rows, kv_heads, keys / SPLIT)       128    4 D a key, kv head and row
// decode_attention_combine_hdD_bf16   rows · heads · D / 2048              256    4 D splits + 2 D a head and row
// A block has the heads / kv_heads ≤ 16 queries of one kv head, which share what is loaded: the rows of a 16-row product. A warp
// takes every fourth page. Nothing is staged: a product's sum may go over columns in any order, so a lane's 16 bytes of a key are
// its operands of two products, and 16 bytes each of two values, interleaved, those of eight.
//
// Floor on an H100 (3.0 TB/s), 256 rows at 1024 tokens, 2 kv heads of 128: 0.09 ms a layer. Checked by emulation only.
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace {
constexpr int PAGE = 32, SPLIT = 512, WARPS = 4, HEADS = 16;
// Below any score, yet finite.
constexpr float LOWEST = -1e30f;

// Where the keys of a page and kv head start; the values follow PAGE · d elements later.
__device__ inline size_t keys_at(unsigned page, int page_stride, int kv_head, int d) {
    return static_cast<size_t>(page) * page_stride + static_cast<size_t>(kv_head) * 2 * PAGE * d;
}

struct Words {
    unsigned at[4];
};
// 16 bytes, or zero if they are not there.
__device__ inline Words load_words(const bf16* p, bool there) {
    if (!there) return {};
    const uint4 raw = load16(p);
    return {{raw.x, raw.y, raw.z, raw.w}};
}

// Chunk c of 8 columns of a head's row in shared memory, whose halves lie 32 floats apart: eight lanes that write together, or read,
// are in different banks.
__device__ inline float* chunk_at(float* row, int head, int chunk) {
    return row + chunk / 8 * 64 + (chunk ^ head) % 2 * 16 + chunk / 2 % 4 * 4;
}
__device__ inline void store_chunk(float* at, const float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 4)
        store16(at + 8 * i, uint4{__float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                                  __float_as_uint(x[i + 3])});
}
__device__ inline void load_chunk(const float* at, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const uint4 raw = load16(at + 8 * i);
        x[i] = __uint_as_float(raw.x);
        x[i + 1] = __uint_as_float(raw.y);
        x[i + 2] = __uint_as_float(raw.z);
        x[i + 3] = __uint_as_float(raw.w);
    }
}

// What a warp has of its pages: queries lane / 4 and lane / 4 + 8. sum_v[8 h + t] holds the columns 64 h + 16 (lane % 4) + t and,
// 8 further on, its second.
template <int D>
struct Part {
    float max[2] = {LOWEST, LOWEST}, sum[2] = {}, sum_v[D / 8][4] = {};
};

// One page, of which the first `keys` keys count.
template <int D>
__device__ inline void add_page(Part<D>& part, const unsigned (&q)[D / 16][4], const bf16* page, int keys, float scale) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    float s[PAGE / 8][4] = {};
#pragma unroll
    for (int n = 0; n < PAGE / 8; ++n)
#pragma unroll
        for (int j = 0; j < D / 32; ++j) {
            const int key = 8 * n + g;
            const Words k = load_words(page + key * D + 32 * j + 8 * c, key < keys);
            const unsigned low[2] = {k.at[0], k.at[1]}, high[2] = {k.at[2], k.at[3]};
            multiply_add(s[n], q[2 * j], low);
            multiply_add(s[n], q[2 * j + 1], high);
        }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = part.max[half], total = 0.0f;
#pragma unroll
        for (int n = 0; n < PAGE / 8; ++n)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                float& x = s[n][2 * half + odd];
                x = 8 * n + 2 * c + odd < keys ? x * scale : -INFINITY;
                top = fmaxf(top, x);
            }
        top = row_max(top);
        const float keep = __expf(part.max[half] - top);
#pragma unroll
        for (int n = 0; n < PAGE / 8; ++n)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) total += s[n][2 * half + odd] = __expf(s[n][2 * half + odd] - top);
        part.max[half] = top;
        part.sum[half] = part.sum[half] * keep + total;
#pragma unroll
        for (int t = 0; t < D / 8; ++t) {
            part.sum_v[t][2 * half] *= keep;
            part.sum_v[t][2 * half + 1] *= keep;
        }
    }
#pragma unroll
    for (int k = 0; k < PAGE / 16; ++k) {
        const unsigned p[4] = {pack_bf16(s[2 * k][0], s[2 * k][1]), pack_bf16(s[2 * k][2], s[2 * k][3]),
                               pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]), pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int h = 0; h < D / 64; ++h) {
            Words v[4];  // of keys 2c, 2c + 1, 2c + 8, 2c + 9 of sixteen
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = 16 * k + 2 * c + i % 2 + i / 2 * 8;
                v[i] = load_words(page + (PAGE + key) * D + 64 * h + 8 * g, key < keys);
            }
#pragma unroll
            for (int t = 0; t < 8; ++t) {
                unsigned pair[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const unsigned even = v[2 * i].at[t / 2], odd = v[2 * i + 1].at[t / 2];
                    pair[i] = t % 2 ? even >> 16 | (odd & 0xffff0000u) : (even & 0xffffu) | odd << 16;
                }
                multiply_add(part.sum_v[8 * h + t], p, pair);
            }
        }
    }
}

template <int D>
__device__ inline void forward(const bf16* qkv, const unsigned* sequence, const unsigned* position, const unsigned* table,
                               const bf16* cache, bf16* o, float* sums, float* stats, int heads, int kv_heads,
                               int table_len, int page_stride, float scale) {
    EXPECTS(heads % kv_heads == 0 && heads / kv_heads <= HEADS && blockDim.x == 32 * WARPS);
    SHARED(float, shared, WARPS * HEADS * D);
    SHARED(float, shared_stats, WARPS * HEADS * 2);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    const int kv_head = blockIdx.y, split = blockIdx.z, splits = gridDim.z, group = heads / kv_heads;
    const size_t row = blockIdx.x;
    const int end = min(static_cast<int>(position[row]) + 1, (split + 1) * SPLIT);
    if (split * SPLIT >= end) return;

    unsigned q[D / 16][4];
    const bf16* const queries = qkv + row * (heads + 2 * kv_heads) * D + static_cast<size_t>(kv_head) * group * D;
#pragma unroll
    for (int j = 0; j < D / 32; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int head = g + 8 * half;
            const Words x = load_words(queries + head * D + 32 * j + 8 * c, head < group);
#pragma unroll
            for (int i = 0; i < 4; ++i) q[2 * j + i / 2][half + i % 2 * 2] = x.at[i];
        }
    const unsigned* const pages = table + static_cast<size_t>(sequence[row]) * table_len;
    Part<D> part;
    for (int first = split * SPLIT + warp * PAGE; first < end; first += WARPS * PAGE)
        add_page<D>(part, q, cache + keys_at(pages[first / PAGE], page_stride, kv_head, D), end - first, scale);

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int head = g + 8 * half;
        const float sum = row_sum(part.sum[half]);
        if (head >= group) continue;
        if (c == 0) {
            float* const kept = shared_stats + 2 * (warp * HEADS + head);
            kept[0] = part.max[half];
            kept[1] = sum;
        }
#pragma unroll
        for (int h = 0; h < D / 64; ++h)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                float x[8];
#pragma unroll
                for (int t = 0; t < 8; ++t) x[t] = part.sum_v[8 * h + t][2 * half + odd];
                store_chunk(chunk_at(shared + (warp * HEADS + head) * D, head, 8 * h + 2 * c + odd), x);
            }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < group * (D / 8); at += blockDim.x) {
        const int head = at / (D / 8), chunk = at % (D / 8), column = 8 * chunk;
        float max = LOWEST, sum = 0.0f, x[8] = {};
#pragma unroll
        for (int w = 0; w < WARPS; ++w) max = fmaxf(max, shared_stats[2 * (w * HEADS + head)]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float* const kept = shared_stats + 2 * (w * HEADS + head);
            const float weight = __expf(kept[0] - max);
            float y[8];
            load_chunk(chunk_at(shared + (w * HEADS + head) * D, head, chunk), y);
            sum += weight * kept[1];
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] += weight * y[i];
        }
        const size_t of = row * heads + kv_head * group + head;
        if (splits > 1) {
            store8(sums + (of * splits + split) * D + column, x);
            if (column == 0) {
                stats[2 * (of * splits + split)] = max;
                stats[2 * (of * splits + split) + 1] = sum;
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] /= sum;
            store8(o + of * D + column, x);
        }
    }
}

// A chunk of 8 columns for each thread.
template <int D>
__device__ inline void combine(const unsigned* position, const float* sums, const float* stats, bf16* o, int rows,
                               int heads, int splits) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x, column = at % (D / 8) * 8, of = at / (D / 8);
    if (of >= static_cast<unsigned>(rows * heads)) return;
    const int count = position[of / heads] / SPLIT + 1;
    const float* const kept = stats + static_cast<size_t>(of) * splits * 2;
    float max = LOWEST, sum = 0.0f, x[8] = {};
    for (int i = 0; i < count; ++i) max = fmaxf(max, kept[2 * i]);
    for (int i = 0; i < count; ++i) {
        const float weight = __expf(kept[2 * i] - max);
        float y[8];
        load8(sums + (static_cast<size_t>(of) * splits + i) * D + column, y);
        sum += weight * kept[2 * i + 1];
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] += weight * y[j];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] /= sum;
    store8(o + static_cast<size_t>(of) * D + column, x);
}
}  // namespace

// A thread has 8 pairs of a head; d: a multiple of 16.
extern "C" __global__ void __launch_bounds__(256)
    decode_attention_append_bf16(bf16* __restrict__ qkv, const unsigned* __restrict__ sequence,
                                 const unsigned* __restrict__ position, const unsigned* __restrict__ table,
                                 bf16* __restrict__ cache, const float* __restrict__ cos, const float* __restrict__ sin,
                                 int rows, int heads, int kv_heads, int d, int table_len, int page_stride) {
    EXPECTS(d % 16 == 0 && page_stride % 8 == 0);
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x, half = d / 2, chunks = half / 8, all = heads + 2 * kv_heads;
    const unsigned pair = 8 * (at % chunks), head = at / chunks % all, row = at / chunks / all;
    if (row >= static_cast<unsigned>(rows)) return;
    const unsigned place = position[row];
    bf16* to = qkv + (static_cast<size_t>(row) * all + head) * d + pair;
    float a[8], b[8];
    load8(to, a);
    load8(to + half, b);
    // Query heads, then those of keys, then those of values.
    const int kv = static_cast<int>(head) - heads;
    if (kv < kv_heads) {
        const size_t angle = static_cast<size_t>(place) * half + pair;
        rotate8(a, b, cos + angle, sin + angle, 1.0f);
    }
    if (kv >= 0) {
        const unsigned page = table[static_cast<size_t>(sequence[row]) * table_len + place / PAGE];
        const int line = kv / kv_heads * PAGE + place % PAGE;
        to = cache + keys_at(page, page_stride, kv % kv_heads, d) + static_cast<size_t>(line) * d + pair;
    }
    store8(to, a);
    store8(to + half, b);
}

extern "C" __global__ void __launch_bounds__(128)
    decode_attention_hd64_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ sequence,
                               const unsigned* __restrict__ position, const unsigned* __restrict__ table,
                               const bf16* __restrict__ cache, bf16* __restrict__ o, float* __restrict__ sums,
                               float* __restrict__ stats, int heads, int kv_heads, int table_len, int page_stride,
                               float scale) {
    forward<64>(qkv, sequence, position, table, cache, o, sums, stats, heads, kv_heads, table_len, page_stride, scale);
}

extern "C" __global__ void __launch_bounds__(128)
    decode_attention_hd128_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ sequence,
                                const unsigned* __restrict__ position, const unsigned* __restrict__ table,
                                const bf16* __restrict__ cache, bf16* __restrict__ o, float* __restrict__ sums,
                                float* __restrict__ stats, int heads, int kv_heads, int table_len, int page_stride,
                                float scale) {
    forward<128>(qkv, sequence, position, table, cache, o, sums, stats, heads, kv_heads, table_len, page_stride, scale);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_attention_combine_hd64_bf16(const unsigned* __restrict__ position, const float* __restrict__ sums,
                                       const float* __restrict__ stats, bf16* __restrict__ o, int rows, int heads,
                                       int splits) {
    combine<64>(position, sums, stats, o, rows, heads, splits);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_attention_combine_hd128_bf16(const unsigned* __restrict__ position, const float* __restrict__ sums,
                                        const float* __restrict__ stats, bf16* __restrict__ o, int rows, int heads,
                                        int splits) {
    combine<128>(position, sums, stats, o, rows, heads, splits);
}
