// PCGrad (Yu et al. 2020) between two gradients p and n, flat f32 [len]: where p·n < 0 each is projected off the other as it was, and
// their sum is (1 − p·n / p·p) p + (1 − p·n / n·n) n; else it is p + n.
//
// len: a multiple of 8 (tensors in a flat buffer are padded). A thread takes 8 elements at a time; sums are in f64.
//
// kernel                grid, block                 bytes per parameter   floor on an H100 (3.0 TB/s), 494 M
// pcgrad_dots_f32       any, fixed (528); 256       8                     1.3 ms
// pcgrad_finish_f64     1; 256                     24 · grid             1 µs
// pcgrad_combine_f32    grid · block ≥ len / 8; 256 12                    2.0 ms
// Run by: uncouple selftest --device cuda; in training by decouple.method = "pcgrad". Checked by emulation only.
#include "common/reduce.cuh"
#include "common/vec.cuh"

// partial [3, grid] = p·n, p·p and n·n over the block's chunks.
extern "C" __global__ void __launch_bounds__(256)
    pcgrad_dots_f32(const float* __restrict__ p, const float* __restrict__ n, double* __restrict__ partial, size_t len) {
    EXPECTS(len % 8 == 0);
    const size_t threads = static_cast<size_t>(gridDim.x) * blockDim.x;
    double both = 0.0, positive = 0.0, negative = 0.0;
    for (size_t chunk = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; chunk < len / 8; chunk += threads) {
        float a[8], b[8];
        load8(p + 8 * chunk, a);
        load8(n + 8 * chunk, b);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const double x = a[i], y = b[i];
            both += x * y;
            positive += x * x;
            negative += y * y;
        }
    }
    both = block_sum(both, 0);
    positive = block_sum(positive, 1);
    negative = block_sum(negative, 0);
    if (threadIdx.x > 0) return;
    partial[blockIdx.x] = both;
    partial[gridDim.x + blockIdx.x] = positive;
    partial[2 * gridDim.x + blockIdx.x] = negative;
}

// out [3] = the factors of p and of n, and the cosine between them (not a number when one of them is 0).
extern "C" __global__ void __launch_bounds__(256)
    pcgrad_finish_f64(const double* __restrict__ partial, double* __restrict__ out, int partials) {
    double sum[3];
#pragma unroll
    for (int which = 0; which < 3; ++which) {
        double own = 0.0;
        for (int i = threadIdx.x; i < partials; i += blockDim.x) own += partial[which * partials + i];
        sum[which] = block_sum(own, which % 2);
    }
    if (threadIdx.x > 0) return;
    const double both = sum[0], positive = sum[1], negative = sum[2];
    const bool disagree = both < 0.0;
    out[0] = disagree ? 1.0 - both / positive : 1.0;
    out[1] = disagree ? 1.0 - both / negative : 1.0;
    out[2] = both / (sqrt(positive) * sqrt(negative));
}

// n = factors[0] p + factors[1] n.
extern "C" __global__ void __launch_bounds__(256)
    pcgrad_combine_f32(const float* __restrict__ p, float* __restrict__ n, const double* __restrict__ factors, size_t len) {
    EXPECTS(len % 8 == 0);
    const size_t chunk = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (8 * chunk >= len) return;
    float a[8], b[8];
    load8(p + 8 * chunk, a);
    load8(n + 8 * chunk, b);
    const double of_p = factors[0], of_n = factors[1];
#pragma unroll
    for (int i = 0; i < 8; ++i) b[i] = static_cast<float>(of_p * a[i] + of_n * b[i]);
    store8(n + 8 * chunk, b);
}
