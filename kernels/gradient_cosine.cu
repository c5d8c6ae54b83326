// Inner products of per-sample gradients: gram[i, j] = ⟨g_i, g_j⟩, from which the cosines follow.
//
// Slab: G bf16 [B, n], one layer's gradient of each of B ≤ 64 samples, n a multiple of 8. Ghost: of a linear layer with input
// x bf16 [N, a] and output gradient d bf16 [N, b], its rows `stride` apart (a, b, stride multiples of 8), sample i being tokens
// start[i] .. start[i + 1] (u32 [B + 1]), ⟨g_i, g_j⟩ = Σ_{t ∈ i, s ∈ j} (x_t · x_s)(d_t · d_s), and no gradient is formed.
// Either leaves partial f32 [parts, B, B], which gram_finish adds to gram f64 [B, B] in order.
//
// kernel                            grid                    block, shared   bytes or flops             floor on an H100
// gradient_cosine_gram_bf16         parts: any, fixed (528) 128, 32 KB      2 B n bytes, read once     B 32, n 4.4e6: 0.093 ms
// gradient_cosine_gram_finish_f64   B² / 256 rounded up     256             4 parts · B² bytes         2 µs
// gradient_cosine_ghost_bf16        (B (B + 1) / 2, parts)  256, 48 KB      N² (a + b) flops           N 16384, a = b 896: 0.60 ms
// (3.0 TB/s, 800 TFLOP/s). Ghost tiles are 128 × 128 tokens of one pair of samples: a sample's last tile is filled with zeros,
// so samples far shorter than 128 tokens are better served by the slab.
// Checked by emulation only.
#include "common/reduce.cuh"
#include "common/tile.cuh"

namespace gram {
constexpr int ROWS = 64, DEPTH = 64, STAGES = 4, THREADS = 128;
// Steps summed by the tensor cores, which truncate, before a rounding sum takes over.
constexpr int FLUSH = 16;

__device__ inline int chunk_at(int row, int chunk) { return row * DEPTH + 8 * (chunk ^ (row % 8)); }
}  // namespace gram

// Part p sums columns 64 (p + k parts) … + 63 for k = 0, 1, …. Warp w has rows 16 w … + 15 and all columns of the Gram matrix.
extern "C" __global__ void __launch_bounds__(128)
    gradient_cosine_gram_bf16(const bf16* __restrict__ g, float* __restrict__ partial, int samples, size_t n) {
    using namespace gram;
    EXPECTS(n % 8 == 0 && samples > 0 && samples <= ROWS && blockDim.x == THREADS);
    DYNAMIC_SHARED(bf16, stages);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tiles = (samples + 15) / 16;
    const long long all = static_cast<long long>((n + DEPTH - 1) / DEPTH);
    const int steps = blockIdx.x < all ? static_cast<int>((all - blockIdx.x - 1) / gridDim.x) + 1 : 0;
    const auto load = [&](int step) {
        if (step < steps) {
            bf16* const stage = stages + step % STAGES * (ROWS * DEPTH);
            const size_t first = (blockIdx.x + static_cast<size_t>(step) * gridDim.x) * DEPTH;
            for (int at = threadIdx.x; at < 16 * tiles * (DEPTH / 8); at += THREADS) {
                const int row = at / (DEPTH / 8), chunk = at % (DEPTH / 8);
                const size_t column = first + 8 * chunk;
                const bool outside = row >= samples || column >= n;
                async_copy16(stage + chunk_at(row, chunk), outside ? g : g + row * n + column, outside);
            }
        }
        async_commit();
    };
    float total[8][4] = {}, d[8][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
        async_wait<STAGES - 2>();
        __syncthreads();
        load(step + STAGES - 1);  // where step - 1 was: all warps are through with it
        if (warp < tiles) {
            const bf16* const stage = stages + step % STAGES * (ROWS * DEPTH);
#pragma unroll
            for (int k = 0; k < DEPTH / 16; ++k) {
                unsigned x[4];
                load_tiles(x, stage + chunk_at(16 * warp + lane % 16, 2 * k + lane / 16));
#pragma unroll
                for (int t = 0; t < ROWS / 16; ++t) {
                    if (t < tiles) {
                        unsigned y[4];
                        load_tiles(y, stage + chunk_at(16 * t + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
                        const unsigned low[2] = {y[0], y[1]}, high[2] = {y[2], y[3]};
                        multiply_add(d[2 * t], x, low);
                        multiply_add(d[2 * t + 1], x, high);
                    }
                }
            }
        }
        if ((step + 1) % FLUSH == 0 || step + 1 == steps) {
#pragma unroll
            for (int t = 0; t < 8; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    total[t][i] += d[t][i];
                    d[t][i] = 0.0f;
                }
        }
    }
    float* const out = partial + static_cast<size_t>(blockIdx.x) * samples * samples;
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = 16 * warp + lane / 4 + i / 2 * 8, column = 8 * t + 2 * (lane % 4) + i % 2;
            if (row < samples && column < samples) out[row * samples + column] = total[t][i];
        }
}

extern "C" __global__ void __launch_bounds__(256)
    gradient_cosine_gram_finish_f64(const float* __restrict__ partial, double* __restrict__ gram, int samples, int parts) {
    const int at = 256 * blockIdx.x + threadIdx.x, size = samples * samples;
    if (at >= size) return;
    double sum = 0.0;
    for (int part = 0; part < parts; ++part) sum += partial[static_cast<size_t>(part) * size + at];
    gram[at] += sum;
}

// A block takes tiles part, part + parts, … of the pair (i, j), j ≤ i, in order. Of a sample with itself, the tiles below the
// diagonal count twice and those above are left out.
extern "C" __global__ void __launch_bounds__(256)
    gradient_cosine_ghost_bf16(const bf16* __restrict__ x, const bf16* __restrict__ d, const unsigned* __restrict__ start,
                               float* __restrict__ partial, int samples, int a, int b, int stride) {
    DYNAMIC_SHARED(bf16, stages);
    int i = 0, j = blockIdx.x;
    while (j > i) j -= ++i;
    EXPECTS(i < samples);
    const int first_i = start[i], first_j = start[j], size_i = start[i + 1] - first_i, size_j = start[j + 1] - first_j;
    const int across = (size_j + tile::SIZE - 1) / tile::SIZE;
    const int tiles = (size_i + tile::SIZE - 1) / tile::SIZE * across;
    double sum = 0.0;
    for (int at = blockIdx.y; at < tiles; at += gridDim.y) {
        const int down = at / across, right = at % across;
        if (i == j && right > down) continue;
        const int t = tile::SIZE * down, s = tile::SIZE * right;
        const size_t row_i = first_i + t, row_j = first_j + s;
        tile::Part inputs, outputs;
        tile::multiply(inputs, x + row_i * a, size_i - t, x + row_j * a, size_j - s, a, a, stages);
        tile::multiply(outputs, d + row_i * stride, size_i - t, d + row_j * stride, size_j - s, b, stride, stages);
        float own = 0.0f;
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int k = 0; k < 4; ++k) own += inputs[m][n][k] * outputs[m][n][k];
        sum += i == j && right < down ? 2.0 * own : own;
    }
    double* const of_warps = reinterpret_cast<double*>(stages);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    sum = 0.0;
    for (int warp = 0; warp < tile::THREADS / 32; ++warp) sum += of_warps[warp];
    float* const out = partial + static_cast<size_t>(blockIdx.y) * samples * samples;
    out[i * samples + j] = out[j * samples + i] = static_cast<float>(sum);
}
