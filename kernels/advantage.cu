// Group advantages: A = (r − mean of the group) / divisor, the divisor being std of the group + eps, std of the batch + eps, or 1
// (Dr. GRPO). Deviations have Bessel's correction; a group of one, or of equal rewards, has A = 0 exactly.
//
// reward, advantage: f32 [n], group after group; start: u32 [groups + 1]. A warp a group; n is hundreds: latency, not bytes
// (8 n), is the floor: ~2 µs. The scalar loads are on purpose: groups start anywhere.
//
// kernel                    grid · block ≥       block
// advantage_group_f32       32 · groups          whole warps
// advantage_batch_std_f32   1 block              whole warps
// Checked by emulation only.
#include "common/reduce.cuh"

// `batch_std`: the divisor without eps if not null, else the group's own deviation, unless `centre_only`.
extern "C" __global__ void __launch_bounds__(256)
    advantage_group_f32(const float* __restrict__ reward, const unsigned* __restrict__ start,
                        const float* __restrict__ batch_std, float* __restrict__ advantage, int groups, int centre_only,
                        float eps) {
    const unsigned lane = threadIdx.x % 32, group = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (group >= static_cast<unsigned>(groups)) return;
    const unsigned begin = start[group], end = start[group + 1];
    if (begin == end) return;
    const float first = reward[begin], size = static_cast<float>(end - begin);
    float sum = 0.0f;
    bool equal = true;
    for (unsigned i = begin + lane; i < end; i += 32) {
        sum += reward[i];
        equal &= reward[i] == first;
    }
    // Compared exactly: the mean of equal rewards may differ from them in the last bit.
    equal = __all_sync(~0u, equal);
    const float mean = warp_sum(sum) / size;
    float squares = 0.0f;
    for (unsigned i = begin + lane; i < end; i += 32) squares += (reward[i] - mean) * (reward[i] - mean);
    squares = warp_sum(squares);
    const float std = batch_std ? *batch_std : sqrtf(squares / (size - 1.0f));
    const float divisor = centre_only ? 1.0f : std + eps;
    for (unsigned i = begin + lane; i < end; i += 32) advantage[i] = equal ? 0.0f : (reward[i] - mean) / divisor;
}

// std of all rewards; 0 for fewer than two.
extern "C" __global__ void __launch_bounds__(256)
    advantage_batch_std_f32(const float* __restrict__ reward, float* __restrict__ std, int n) {
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += reward[i];
    const float mean = block_sum(sum, 0) / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) squares += (reward[i] - mean) * (reward[i] - mean);
    squares = block_sum(squares, 1);
    if (threadIdx.x == 0) *std = n < 2 ? 0.0f : sqrtf(squares / (n - 1));
}
