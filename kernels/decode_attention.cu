// Attention of single queries over a paged cache: o = Σ_j softmax_j(q·k_j · scale) v_j over the keys j ≤ position of the row's
// sequence. Rows may be of many sequences (decoding) or many of one (prefill); append comes first: it rotates their queries where they
// are, and puts their rotated keys and their values in the cache (see rope.cu).
//
// cache: bf16 [pages, layers, kv_heads, 2 (keys, values), PAGE, D], from the layer's place in page 0 on, with page_stride elements
// from one page to the next; table: u32 [sequences, table_len], the pages of each sequence in order; sequence, position: u32
// [rows], no two of one place in append (unless they are equal). qkv: bf16 [rows, (heads + 2 kv_heads) · D]; o: bf16 [rows, heads ·
// D]; cos, sin: f32 [positions, D / 2]. Contexts are cut every SPLIT keys, wherever they are, so that a row's bits do not depend on
// its company. With more than one split (gridDim.z), sums: f32 [rows, heads, splits, D] and stats: f32 [rows, heads, splits, 2]
// (maximum of scaled scores, sum of exponentials) hold the parts, and the combine kernel adds them in order; with one, o is written
// at once.
//
// kernel (D = 64, 128)                grid (rounded up)                       block  shared          bytes
// decode_attention_append_bf16        rows · all heads · D / 4096             256    0               4 D a head and row
// decode_attention_hdD_bf16           (rows, kv_heads, keys / SPLIT)          128    0               4 D a key, kv head and row
// decode_attention_tiled_hdD_bf16     (rows / members, kv_heads, keys / SPLIT) 512   1152 D + 10496  4 D a key, kv head and tile
// decode_attention_combine_hdD_bf16   rows · heads · D / 2048                 256    0               4 D splits + 2 D a head and row
// The first has a row a block: the heads / kv_heads ≤ 16 queries of one kv head, which share what is loaded: the rows of a 16-row
// product. A warp takes every fourth page. Nothing is staged: a product's sum may go over columns in any order, so a lane's 16 bytes
// of a key are its operands of two products, and 16 bytes each of two values, interleaved, those of eight.
// The tiled one has four such products' rows a block, of 4 · (16 / (heads / kv_heads)) rows that follow each other: its members. A page
// is loaded once for members that share it: those of one prompt, or those of a group that went on from one prompt. Four warps take every
// fourth page, each of them for its 16 rows. What a row is computed from, and in which order, is the same, so its bits are, too.
//
// Floor on an H100 (3.0 TB/s), 256 rows at 1024 tokens, 2 kv heads of 128: 0.09 ms a layer, or, in groups of 8 that share them all,
// 0.011 ms. Checked by emulation only.
#include "common/async.cuh"
#include "common/hopper.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/rope.cuh"
#include "common/vec.cuh"

namespace {
constexpr int PAGE = 32, SPLIT = 512, WARPS = 4, HEADS = 16;
// Of the tiled kernel: rows of products, and pages of a split by members for each four warps.
constexpr int TILES = 4, ROWS = TILES * HEADS, PLACES = SPLIT / PAGE / WARPS * ROWS;
constexpr unsigned NONE = ~0u;
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

// Half a chunk of 8 columns of row `at` of sums in shared memory. Different banks have: eight chunks' halves; the halves of a chunk of
// four rows that follow each other; every other chunk's half of two.
__device__ inline float* sums_at(float* row, int at, int chunk, int half) {
    return row + 4 * (chunk / 8 * 16 + half * 8 + (chunk % 8 ^ 4 * half ^ at % 4));
}

// What a warp has of its pages, for the rows lane / 4 and 8 further on. Which columns sum_v[i] has, who adds values says.
template <int D>
struct PageSums {
    float max[2] = {LOWEST, LOWEST}, sum[2] = {}, sum_v[D / 8][4] = {};
};
// The probabilities of a page, not divided by their sum yet, as operands.
using Probabilities = unsigned[PAGE / 16][4];

// The keys of a page, of which so many count for either row. query(j, half) has 8 columns of a row's query, chunk 4 j + c; load(key,
// chunk) of a key.
template <int D, class Query, class Load>
__device__ inline void add_keys(PageSums<D>& part, Probabilities& p, const int (&keys)[2], float scale, const Query& query,
                                const Load& load) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    float s[PAGE / 8][4] = {};
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
        const Words x = query(j, 0), y = query(j, 1);
        const unsigned q[2][4] = {{x.at[0], y.at[0], x.at[1], y.at[1]}, {x.at[2], y.at[2], x.at[3], y.at[3]}};
#pragma unroll
        for (int n = 0; n < PAGE / 8; ++n) {
            const Words k = load(8 * n + g, 4 * j + c);
            const unsigned low[2] = {k.at[0], k.at[1]}, high[2] = {k.at[2], k.at[3]};
            multiply_add(s[n], q[0], low);
            multiply_add(s[n], q[1], high);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = part.max[half], total = 0.0f;
#pragma unroll
        for (int n = 0; n < PAGE / 8; ++n)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                float& x = s[n][2 * half + odd];
                x = 8 * n + 2 * c + odd < keys[half] ? x * scale : -INFINITY;
                top = fmaxf(top, x);
            }
        top = row_max(top);
        const float keep = __expf(part.max[half] - top);
#pragma unroll
        for (int n = 0; n < PAGE / 8; ++n) {
            float* const pair = s[n] + 2 * half;
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) total += pair[odd] = __expf(pair[odd] - top);
            p[n / 2][n % 2 * 2 + half] = pack_bf16(pair[0], pair[1]);
        }
        part.max[half] = top;
        part.sum[half] = part.sum[half] * keep + total;
#pragma unroll
        for (int t = 0; t < D / 8; ++t) {
            part.sum_v[t][2 * half] *= keep;
            part.sum_v[t][2 * half + 1] *= keep;
        }
    }
}

// The values of a page in global memory, of which the first `keys` exist. sum_v[8 h + t] gets the columns 64 h + 16 c + t and, 8
// further on, its second: a lane's 16 bytes of a value are its operands of eight products.
template <int D>
__device__ inline void add_values(PageSums<D>& part, const Probabilities& p, const bf16* values, int keys) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < PAGE / 16; ++k)
#pragma unroll
        for (int h = 0; h < D / 64; ++h) {
            Words v[4];  // of keys 2c, 2c + 1, 2c + 8, 2c + 9 of sixteen
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = 16 * k + 2 * c + i % 2 + i / 2 * 8;
                v[i] = load_words(values + key * D + 64 * h + 8 * g, key < keys);
            }
#pragma unroll
            for (int t = 0; t < 8; ++t) {
                unsigned pair[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const unsigned even = v[2 * i].at[t / 2], odd = v[2 * i + 1].at[t / 2];
                    pair[i] = t % 2 ? even >> 16 | (odd & 0xffff0000u) : (even & 0xffffu) | odd << 16;
                }
                multiply_add(part.sum_v[8 * h + t], p[k], pair);
            }
        }
}

// Two columns of a row of sums.
struct alignas(8) Two {
    float of[2];
};

// Where results go: rows of `o`, or, with more than one split, `sums` and `stats`.
struct Results {
    bf16* o;
    float *sums, *stats;
};

__device__ inline void load_sums(const float* row, int at, int chunk, float (&x)[8]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint4 raw = load16(sums_at(const_cast<float*>(row), at, chunk, half));
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) x[4 * half + i] = __uint_as_float(words[i]);
    }
}

// A chunk of the sum of WARPS parts of a row, `stride` rows apart, to where it belongs; `of`: row of the batch · heads + head.
template <int D>
__device__ inline void finish_row(const float* parts, const float* part_stats, int stride, int at, int chunk, size_t of,
                                  const Results& to) {
    const int split = blockIdx.z, splits = gridDim.z, column = 8 * chunk;
    float max = LOWEST, sum = 0.0f, x[8] = {};
#pragma unroll
    for (int w = 0; w < WARPS; ++w) max = fmaxf(max, part_stats[2 * w * stride]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        const float* const kept = part_stats + 2 * w * stride;
        const float weight = __expf(kept[0] - max);
        float y[8];
        load_sums(parts + w * stride * D, at, chunk, y);
        sum += weight * kept[1];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] += weight * y[i];
    }
    if (splits > 1) {
        store8(to.sums + (of * splits + split) * D + column, x);
        if (column == 0) {
            to.stats[2 * (of * splits + split)] = max;
            to.stats[2 * (of * splits + split) + 1] = sum;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] /= sum;
        store8(to.o + of * D + column, x);
    }
}

template <int D>
__device__ inline void forward(const bf16* qkv, const unsigned* sequence, const unsigned* position, const unsigned* table,
                               const bf16* cache, const Results& to, int heads, int kv_heads, int table_len,
                               int page_stride, float scale) {
    EXPECTS(heads % kv_heads == 0 && heads / kv_heads <= HEADS && blockDim.x == 32 * WARPS);
    SHARED(float, shared, WARPS * HEADS * D);
    SHARED(float, shared_stats, WARPS * HEADS * 2);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    const int kv_head = blockIdx.y, split = blockIdx.z, group = heads / kv_heads;
    const size_t row = blockIdx.x;
    const int end = min(static_cast<int>(position[row]) + 1, (split + 1) * SPLIT);
    if (split * SPLIT >= end) return;

    Words q[D / 32][2];
    const bf16* const queries = qkv + row * (heads + 2 * kv_heads) * D + static_cast<size_t>(kv_head) * group * D;
#pragma unroll
    for (int j = 0; j < D / 32; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int head = g + 8 * half;
            q[j][half] = load_words(queries + head * D + 32 * j + 8 * c, head < group);
        }
    const unsigned* const pages = table + static_cast<size_t>(sequence[row]) * table_len;
    PageSums<D> part;
    const int start = split * SPLIT + warp * PAGE;
    unsigned page = pages[min(start, end - 1) / PAGE];
    for (int first = start; first < end; first += WARPS * PAGE) {
        const int following = first + WARPS * PAGE;
        const unsigned next = pages[min(following, end - 1) / PAGE];
        const bf16* const keys = cache + keys_at(page, page_stride, kv_head, D);
        const int counts[2] = {end - first, end - first};
        Probabilities p;
        add_keys<D>(
            part, p, counts, scale, [&](int j, int half) { return q[j][half]; },
            [&](int key, int chunk) { return load_words(keys + key * D + 8 * chunk, key < end - first); });
        add_values<D>(part, p, keys + PAGE * D, end - first);
        page = next;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int head = g + 8 * half, at = warp * HEADS + head;
        const float sum = row_sum(part.sum[half]);
        if (head >= group) continue;
        if (c == 0) {
            shared_stats[2 * at] = part.max[half];
            shared_stats[2 * at + 1] = sum;
        }
#pragma unroll
        for (int h = 0; h < D / 64; ++h)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const auto word = [&](int t) { return __float_as_uint(part.sum_v[8 * h + 4 * i + t][2 * half + odd]); };
                    store16(sums_at(shared + at * D, head, 8 * h + 2 * c + odd, i), uint4{word(0), word(1), word(2), word(3)});
                }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < group * (D / 8); at += blockDim.x) {
        const int head = at / (D / 8), chunk = at % (D / 8);
        finish_row<D>(shared + head * D, shared_stats + 2 * head, HEADS, head, chunk, row * heads + kv_head * group + head,
                      to);
    }
}

// Of a tile of rows: pages in stages, two for each four warps, which the sums follow; who shares which page.
template <int D>
struct Tile {
    // Of a page that members see, the keys that any of them sees, and the place of the next.
    struct Run {
        unsigned short next;
        unsigned char end, keys;
    };
    union {
        bf16 stages[WARPS][2][2 * PAGE * D];
        float sums[WARPS][ROWS * D];
    };
    bf16 queries[ROWS * D];
    float stats[WARPS][2 * ROWS];
    int ends[ROWS];
    // The pages of four warps, ROWS · (page of theirs) + member; and, where members that share one begin, what is known of it.
    unsigned pages[WARPS][PLACES];
    Run runs[WARPS][PLACES];

    // Where a chunk of a query or key lies, and of a value: what eight lanes load together, four chunks of two keys or one of eight
    // values, is in different banks.
    __device__ static int key_chunk(int row, int chunk) { return row * D + 8 * (chunk ^ row % 2 * 4); }
    __device__ static int value_chunk(int row, int chunk) { return row * D + 8 * (chunk ^ row % 8); }

    // The staged values of a page. sum_v[i] gets the columns 8 i + 2 c, and the next.
    __device__ static void add_values(PageSums<D>& part, const Probabilities& p, const bf16* values) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < PAGE / 16; ++k)
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                unsigned v[4];
                load_tiles<true>(v, values + value_chunk(16 * k + lane % 16, 2 * d + lane / 16));
                const unsigned low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
                multiply_add(part.sum_v[2 * d], p[k], low);
                multiply_add(part.sum_v[2 * d + 1], p[k], high);
            }
    }

    // The first key of a place.
    __device__ static int key_at(int four, int place) { return blockIdx.z * SPLIT + (place / ROWS * WARPS + four) * PAGE; }

    // Finds the pages of so many rows from `first` on. A barrier is to follow.
    __device__ void find(const unsigned* sequence, const unsigned* position, const unsigned* table, int first, int count,
                         int table_len) {
        for (int m = threadIdx.x; m < ROWS; m += blockDim.x)
            ends[m] = m < count ? static_cast<int>(position[first + m]) + 1 : 0;
        __syncthreads();
        for (int at = threadIdx.x; at < WARPS * PLACES; at += blockDim.x) {
            const int four = at / PLACES, place = at % PLACES, m = place % ROWS, key = key_at(four, place);
            pages[four][place] =
                key < ends[m] ? table[static_cast<size_t>(sequence[first + m]) * table_len + key / PAGE] : NONE;
        }
        __syncthreads();
        for (int at = threadIdx.x; at < WARPS * PLACES; at += blockDim.x) {
            const int four = at / PLACES, place = at % PLACES, m = place % ROWS, key = key_at(four, place);
            int end = m, keys = 0;
            for (; end < ROWS && pages[four][place - m + end] == pages[four][place]; ++end)
                keys = max(keys, min(PAGE, ends[end] - key));
            int next = place - m + end;
            while (next < PLACES && pages[four][next] == NONE) next = next % ROWS < count ? next + 1 : (next / ROWS + 1) * ROWS;
            runs[four][place] = {static_cast<unsigned short>(next), static_cast<unsigned char>(end),
                                 static_cast<unsigned char>(max(keys, 0))};
        }
    }
};
static_assert(sizeof(Tile<64>) == 1152 * 64 + 10496 && sizeof(Tile<128>) == 1152 * 128 + 10496,
              "the shared memory that the host gives");

template <int D>
__device__ inline void forward_tiled(const bf16* qkv, const unsigned* sequence, const unsigned* position,
                                     const unsigned* table, const bf16* cache, const Results& to, int rows, int heads,
                                     int kv_heads, int table_len, int page_stride, float scale) {
    EXPECTS(heads % kv_heads == 0 && heads / kv_heads <= HEADS && blockDim.x == 128 * WARPS);
    DYNAMIC_SHARED(unsigned char, dynamic);
    Tile<D>& tile = *reinterpret_cast<Tile<D>*>(dynamic);
    const int four = threadIdx.x / 128, row = HEADS * (threadIdx.x / 32 % 4) + threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int kv_head = blockIdx.y, group = heads / kv_heads, of_product = HEADS / group;
    const int first = blockIdx.x * (TILES * of_product), members = min(TILES * of_product, rows - first);
    // A product's row has a head of a member, if there is one.
    const auto member_of = [&](int at) {
        const int of = at % HEADS, m = at / HEADS * of_product + of / group;
        return of < of_product * group && m < members ? m : -1;
    };
    for (int i = threadIdx.x; i < ROWS * (D / 8); i += blockDim.x) {
        const int at = i / (D / 8), chunk = i % (D / 8), m = member_of(at);
        const size_t head = kv_head * group + at % HEADS % group, of = static_cast<size_t>(first + max(m, 0));
        async_copy16(tile.queries + Tile<D>::key_chunk(at, chunk), qkv + (of * (heads + 2 * kv_heads) + head) * D + 8 * chunk,
                     m < 0);
    }
    async_commit();
    tile.find(sequence, position, table, first, members, table_len);
    async_wait<0>();
    __syncthreads();

    // Of a member that is not there: after all others.
    const int member[2] = {member_of(row) & 0xff, member_of(row + 8) & 0xff};
    const auto load = [&](int place, bf16* stage) {
        if (place < PLACES) {
            const bf16* const page = cache + keys_at(tile.pages[four][place], page_stride, kv_head, D);
            const int keys = tile.runs[four][place].keys;
#pragma unroll 1
            for (int i = threadIdx.x % 128; i < PAGE * (D / 8); i += 128) {
                const int key = i / (D / 8), chunk = i % (D / 8);
                const bf16* const from = key < keys ? page + key * D + 8 * chunk : page;
                async_copy16(stage + Tile<D>::key_chunk(key, chunk), from, key >= keys);
                async_copy16(stage + PAGE * D + Tile<D>::value_chunk(key, chunk), from + PAGE * D, key >= keys);
            }
        }
        async_commit();
    };
    PageSums<D> part;
    int place = tile.pages[four][0] == NONE ? tile.runs[four][0].next : 0;
    load(place, tile.stages[four][0]);
    for (int turn = 0; place < PLACES; turn ^= 1) {
        const typename Tile<D>::Run run = tile.runs[four][place];
        load(run.next, tile.stages[four][turn ^ 1]);
        async_wait<1>();
        barrier_sync(1 + four, 128);
        const int own = row / HEADS * of_product, begin = place % ROWS;
        if (begin < own + of_product && own < run.end) {
            const bf16* const stage = tile.stages[four][turn];
            int keys[2];
#pragma unroll
            for (int half = 0; half < 2; ++half)
                keys[half] =
                    begin <= member[half] && member[half] < run.end ? tile.ends[member[half]] - tile.key_at(four, place) : 0;
            const auto load_chunk = [](const bf16* rows, int row, int chunk) {
                return load_words(rows + Tile<D>::key_chunk(row, chunk), true);
            };
            Probabilities p;
            add_keys<D>(
                part, p, keys, scale,
                [&](int j, int half) { return load_chunk(tile.queries, row + 8 * half, 4 * j + c); },
                [&](int key, int chunk) { return load_chunk(stage, key, chunk); });
            tile.add_values(part, p, stage + PAGE * D);
        }
        barrier_sync(1 + four, 128);  // before the stage is loaded again
        place = run.next;
    }
    // Sums lie where stages lay, of the same four warps, which are through with them.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = row + 8 * half;
        const float sum = row_sum(part.sum[half]);
        if (c == 0) {
            tile.stats[four][2 * at] = part.max[half];
            tile.stats[four][2 * at + 1] = sum;
        }
#pragma unroll
        for (int t = 0; t < D / 8; ++t)
            *reinterpret_cast<Two*>(sums_at(tile.sums[four] + at * D, at, t, c / 2) + c % 2 * 2) = {
                part.sum_v[t][2 * half], part.sum_v[t][2 * half + 1]};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < members * group * (D / 8); i += blockDim.x) {
        const int chunk = i % (D / 8), head = i / (D / 8) % group, m = i / (D / 8) / group;
        if (tile.ends[m] <= static_cast<int>(blockIdx.z) * SPLIT) continue;
        const int at = m / of_product * HEADS + m % of_product * group + head;
        const size_t of = static_cast<size_t>(first + m) * heads + kv_head * group + head;
        finish_row<D>(tile.sums[0] + at * D, tile.stats[0] + 2 * at, ROWS, at, chunk, of, to);
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
    forward<64>(qkv, sequence, position, table, cache, {o, sums, stats}, heads, kv_heads, table_len, page_stride, scale);
}

extern "C" __global__ void __launch_bounds__(128)
    decode_attention_hd128_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ sequence,
                               const unsigned* __restrict__ position, const unsigned* __restrict__ table,
                               const bf16* __restrict__ cache, bf16* __restrict__ o, float* __restrict__ sums,
                               float* __restrict__ stats, int heads, int kv_heads, int table_len, int page_stride,
                               float scale) {
    forward<128>(qkv, sequence, position, table, cache, {o, sums, stats}, heads, kv_heads, table_len, page_stride, scale);
}

extern "C" __global__ void __launch_bounds__(512)
    decode_attention_tiled_hd64_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ sequence,
                                     const unsigned* __restrict__ position, const unsigned* __restrict__ table,
                                     const bf16* __restrict__ cache, bf16* __restrict__ o, float* __restrict__ sums,
                                     float* __restrict__ stats, int rows, int heads, int kv_heads, int table_len,
                                     int page_stride, float scale) {
    forward_tiled<64>(qkv, sequence, position, table, cache, {o, sums, stats}, rows, heads, kv_heads, table_len,
                      page_stride, scale);
}

extern "C" __global__ void __launch_bounds__(512)
    decode_attention_tiled_hd128_bf16(const bf16* __restrict__ qkv, const unsigned* __restrict__ sequence,
                                     const unsigned* __restrict__ position, const unsigned* __restrict__ table,
                                     const bf16* __restrict__ cache, bf16* __restrict__ o, float* __restrict__ sums,
                                     float* __restrict__ stats, int rows, int heads, int kv_heads, int table_len,
                                     int page_stride, float scale) {
    forward_tiled<128>(qkv, sequence, position, table, cache, {o, sums, stats}, rows, heads, kv_heads, table_len,
                      page_stride, scale);
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
