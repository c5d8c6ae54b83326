// Online softmax of logits, part by part.
#pragma once
#include "common/target.cuh"

// Of the logits seen so far: maximum m, Σ e^(l − m), Σ e^(l − m) (l − m).
struct Softmax {
    float max, sum, weighted;
};

// Below any logit, yet finite: times zero it is zero.
constexpr float LOWEST = -1e30f;

__device__ inline Softmax merge(Softmax a, Softmax b) {
    const float max = fmaxf(a.max, b.max), da = a.max - max, db = b.max - max, ea = __expf(da), eb = __expf(db);
    return {max, ea * a.sum + eb * b.sum, ea * (a.weighted + da * a.sum) + eb * (b.weighted + db * b.sum)};
}
