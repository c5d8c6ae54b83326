// Philox 4x32-10, the stream of src/ops/philox.rs.
#pragma once
#include "common/target.cuh"

// Block number `index` of `stream` under `seed`: four independent words.
__device__ inline uint4 philox(unsigned long long seed, unsigned long long stream, unsigned long long index) {
    uint4 c = {static_cast<unsigned>(index), static_cast<unsigned>(index >> 32), static_cast<unsigned>(stream),
               static_cast<unsigned>(stream >> 32)};
    unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned even = __umulhi(0xD2511F53u, c.x), odd = __umulhi(0xCD9E8D57u, c.z);
        c = uint4{odd ^ c.y ^ k0, 0xCD9E8D57u * c.z, even ^ c.w ^ k1, 0xD2511F53u * c.x};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}
