// Matrix products of one warp on the tensor cores: bf16 tiles, f32 sums. Every lane of the warp calls together.
//
// With g = lane / 4 and c = 2 (lane % 4), a register of two bf16 holds columns c, c + 1 of row g of an 8 × 8 tile:
//   a (16 × 16): tiles at (0, 0), (8, 0), (0, 8), (8, 8).
//   b (16 × 8), held as its transpose (8 × 16): tiles at (0, 0), (0, 8) of that.
//   d (16 × 8): d[0], d[1] are columns c, c + 1 of row g; d[2], d[3] those of row g + 8.
#pragma once
#include "common/bf16.cuh"

#ifndef __CUDACC__
namespace emulator {
struct Load {
    const bf16* row;
    unsigned* tile;  // 4 registers
    template <bool TRANSPOSED>
    struct Spread {
        static void run(Load* const* lanes, unsigned) {
            for (int lane = 0; lane < 32; ++lane) {
                for (int t = 0; t < 4; ++t) {
                    const int g = lane / 4, c = 2 * (lane % 4);
                    const auto at = [&](int row, int column) { return unsigned(lanes[8 * t + row]->row[column].bits); };
                    lanes[lane]->tile[t] = TRANSPOSED ? at(c, g) | at(c + 1, g) << 16 : at(g, c) | at(g, c + 1) << 16;
                }
            }
        }
    };
};

struct Product {
    float* d;
    const unsigned *a, *b;
    struct Multiply {
        static void run(Product* const* lanes, unsigned) {
            float a[16][16], b[8][16];  // b: transposed
            const auto spread = [](float* row, unsigned pair) {
                row[0] = __uint_as_float(pair << 16);
                row[1] = __uint_as_float(pair & 0xffff0000u);
            };
            for (int lane = 0; lane < 32; ++lane) {
                const int g = lane / 4, c = 2 * (lane % 4);
                for (int t = 0; t < 4; ++t) spread(&a[g + t % 2 * 8][c + t / 2 * 8], lanes[lane]->a[t]);
                for (int t = 0; t < 2; ++t) spread(&b[g][c + t * 8], lanes[lane]->b[t]);
            }
            for (int lane = 0; lane < 32; ++lane) {
                for (int i = 0; i < 4; ++i) {
                    const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
                    float sum = 0.0f;
                    for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
                    lanes[lane]->d[i] += sum;
                }
            }
        }
    };
};
}  // namespace emulator
#endif

// Four 8 × 8 tiles from shared memory: lane i brings the address of row i % 8 of tile i / 8 (16 bytes, aligned).
template <bool TRANSPOSED = false>
__device__ inline void load_tiles(unsigned (&tile)[4], const bf16* row WHERE) {
#ifdef __CUDACC__
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                     : "r"(at)
                     : "memory");
#else
    emulator_access(row, 16 HERE);
    emulator::Load part{row, tile};
    emulator::collective(~0u, "ldmatrix", part, emulator::Load::Spread<TRANSPOSED>{} HERE);
#endif
}

// d += a · b, 16 × 8 += (16 × 16) · (16 × 8).
__device__ inline void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2] WHERE) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulator::Product part{d, a, b};
    emulator::collective(~0u, "mma", part, emulator::Product::Multiply{} HERE);
#endif
}
