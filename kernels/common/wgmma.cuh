// Matrix products of a warpgroup on Hopper's tensor cores (sm_90a): D (64 × N) += A (64 × 16) · B (16 × N), bf16, f32 sums.
// The 128 threads of four warps in a row, the first a multiple of 4, call together.
//
// A product is asynchronous: fence the registers that it takes, ask for it, commit, wait. In between nobody looks at those
// registers or changes its operands in shared memory. Warp w has rows 16 w to 16 w + 15, laid out as in common/mma.cuh: with
// g = lane / 4 and c = 2 (lane % 4), D's sum(n, half, odd) is column 8 n + c + odd of row g + 8 half, and A's four registers are
// the tiles at (0, 0), (8, 0), (0, 8), (8, 8).
#pragma once
#include "common/hopper.cuh"

// A thread's registers of a product, which know in the emulator whether one is under way: nobody but products passes the check.
template <class T, int COUNT>
class Registers {
    T value[COUNT];
    friend struct Unchecked;

public:
#ifndef __CUDACC__
    struct Use {
        unsigned under_way, touched;
    } use{0, 1};
    Registers() = default;
    Registers(const Registers&) = delete;
    ~Registers() {
        if (use.under_way)
            emulator_mistake("registers of a product are given up before it was waited for", __FILE__, __LINE__);
    }
#endif
    __device__ T& operator()(int i WHERE) {
#ifndef __CUDACC__
        if (use.under_way) emulator_mistake("registers of a product are touched before it was waited for" HERE);
        use.touched = 1;
#endif
        return value[i];
    }
};

struct Unchecked {
    template <class T, int COUNT>
    __device__ static T& at(Registers<T, COUNT>& registers, int i) {
        return registers.value[i];
    }
};

// 16 columns of A.
using Fragment = Registers<unsigned, 4>;

// D.
template <int N>
struct Sums : Registers<float, N / 2> {
    __device__ float& operator()(int n, int half, int odd WHERE) {
        return Registers<float, N / 2>::operator()(4 * n + 2 * half + odd HERE);
    }
};

#ifdef __CUDACC__
// The compiler is not to move what uses these registers past this point.
__device__ inline void pin(float& x) { asm volatile("" : "+f"(x)::"memory"); }
__device__ inline void pin(unsigned& x) { asm volatile("" : "+r"(x)::"memory"); }
template <class T, int COUNT>
__device__ inline void pin(Registers<T, COUNT>& registers) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) pin(Unchecked::at(registers, i));
}
template <class T, int COUNT, int MANY>
__device__ inline void pin(Registers<T, COUNT> (&registers)[MANY]) {
#pragma unroll
    for (int i = 0; i < MANY; ++i) pin(registers[i]);
}
#else
namespace emulator {
template <class T, int COUNT>
inline void fence(Registers<T, COUNT>& registers) {
    registers.use.touched = 0;
}
template <class T, int COUNT, int MANY>
inline void fence(Registers<T, COUNT> (&registers)[MANY]) {
    for (auto& each : registers) fence(each);
}
template <class T, int COUNT>
inline void complete(Registers<T, COUNT>& registers) {
    if (registers.use.under_way)
        emulator_mistake("the wait leaves the product of these registers under way", __FILE__, __LINE__);
}
template <class T, int COUNT, int MANY>
inline void complete(Registers<T, COUNT> (&registers)[MANY]) {
    for (auto& each : registers) complete(each);
}

struct Nothing {
    struct Happens {
        static void run(Nothing* const*, unsigned) {}
    };
};
// As instructions that all lanes of a warp must reach.
inline void converge(const char* what, const char* file, int line) {
    Nothing part;
    collective(~0u, what, part, Nothing::Happens{}, file, line);
}

// What a lane brings to a product: src/wgmma.rs.
struct WarpgroupProduct {
    float* d;
    void* d_use;
    const unsigned* a;
    void* a_use;
    unsigned long long a_operand, b_operand;
    unsigned n, a_transposed, b_transposed, accumulate;
};
}  // namespace emulator
#endif

// Gives up what the registers held, where the next product is not to accumulate: the compiler need not keep it for that.
template <int N>
__device__ inline void renew(Sums<N>& sums) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i)
#ifdef __CUDACC__
        asm volatile("" : "=f"(Unchecked::at(sums, i)));
#else
        Unchecked::at(sums, i) = NAN;
#endif
}

// Calls f(sum) for each sum of one of this thread's two rows: lane / 4 of its warp's 16, and 8 further on.
template <int N, class F>
__device__ inline void each(Sums<N>& sums, int half, const F& f) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) f(sums(n, half, odd));
}

// Calls f(sum, half, column) for each sum.
template <int N, class F>
__device__ inline void each(Sums<N>& sums, const F& f) {
    const int own = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int n = 0; n < N / 8; ++n)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) f(sums(n, half, odd), half, 8 * n + own + odd);
}

// Before products take registers that anything else has touched.
template <class... R>
__device__ inline void product_fence(R&... registers) {
#ifdef __CUDACC__
    (pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    (emulator::fence(registers), ...);
#endif
}

// Ends a group: the products issued since the last one.
__device__ inline void product_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    emulator_product_commit();
#endif
}

// Waits until at most the last PENDING groups are under way; `registers` are those of products that are then complete.
// In the emulator its warp's lanes meet here.
template <int PENDING, class... R>
__device__ inline void product_wait(R&... registers) {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (pin(registers), ...);
#else
    emulator::converge("wgmma.wait_group", __FILE__, __LINE__);
    emulator_product_wait(PENDING);
    (emulator::complete(registers), ...);
#endif
}

// False, which the compiler can't know, of a number that is never negative. ptxas moves a wait for products up, above arithmetic that does
// not need them; it can't above a branch on what that arithmetic gives. The branch waits too, or ptxas does for it. Every lane of a warp
// must reach it.
__device__ inline bool is_negative(float never WHERE) { return __any_sync(~0u, never < 0.0f HERE); }

// How rows of 16-byte chunks lie in shared memory: as they come, or chunk c of row r at c ^ (r % 8) of rows of 128 bytes, or at
// c ^ (r / 2 % 4) of rows of 64; the pattern begins at a multiple of 8 rows' bytes.
enum class Swizzle : unsigned long long { NONE = 0, BYTES_128 = 1, BYTES_64 = 2 };

// An operand in shared memory: how to get from one 8 × 8 block (or row of them) to the next.
//   K-major (rows of consecutive k): `stride` bytes from 8 rows to the next 8; `leading` bytes from 8 columns to the next 8 without
//   a swizzle, else nothing.
//   Transposed (rows of consecutive m or n, as wide as the swizzle): `stride` bytes from 8 k to the next 8, `leading` from the
//   row's columns to the next as many. Without a swizzle `stride` bytes from 8 m or n to the next 8, `leading` from 8 k to the next.
template <Swizzle SWIZZLE>
__device__ inline unsigned long long operand(const bf16* first, unsigned stride, unsigned leading = 0) {
    const auto field = [](unsigned bytes) { return static_cast<unsigned long long>((bytes & 0x3ffff) >> 4); };
    return field(shared_address(first)) | field(leading) << 16 | field(stride) << 32 |
           static_cast<unsigned long long>(SWIZZLE) << 62;
}

// The same so many bytes further on.
__device__ inline unsigned long long further(unsigned long long operand, int bytes) { return operand + (bytes >> 4); }

#ifdef __CUDACC__
#define SUM(i) "+f"(Unchecked::at(d, i))
#define SUMS_8(i) SUM(i), SUM(i + 1), SUM(i + 2), SUM(i + 3), SUM(i + 4), SUM(i + 5), SUM(i + 6), SUM(i + 7)
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#endif

// d = a · b, or += where it is to accumulate; both operands in shared memory.
template <bool A_TRANSPOSED = false, bool B_TRANSPOSED = false, int N>
__device__ inline void product(Sums<N>& d, unsigned long long a, unsigned long long b, bool accumulate WHERE) {
    static_assert(N == 64 || N == 128 || N == 256, "a width without its instruction here");
#ifdef __CUDACC__
    if constexpr (N == 64)
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "%32, %33, p, 1, 1, %35, %36;\n}"
            : SUMS_32(0)
            : "l"(a), "l"(b), "r"(int(accumulate)), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
    else if constexpr (N == 256)
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
            "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
            "%128, %129, p, 1, 1, %131, %132;\n}"
            : SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96)
            : "l"(a), "l"(b), "r"(int(accumulate)), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
    else
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, %67, %68;\n}"
            : SUMS_32(0), SUMS_32(32)
            : "l"(a), "l"(b), "r"(int(accumulate)), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
#else
    const emulator::WarpgroupProduct part{&Unchecked::at(d, 0), &d.use, nullptr, nullptr, a, b, N, A_TRANSPOSED,
                                          B_TRANSPOSED, accumulate};
    emulator_product(&part HERE);
#endif
}

// The same with A in registers.
template <bool B_TRANSPOSED = false, int N>
__device__ inline void product(Sums<N>& d, Fragment& a, unsigned long long b, bool accumulate WHERE) {
    static_assert(N == 64 || N == 128, "a width without its instruction here");
#ifdef __CUDACC__
    if constexpr (N == 64)
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
            : SUMS_32(0)
            : "r"(Unchecked::at(a, 0)), "r"(Unchecked::at(a, 1)), "r"(Unchecked::at(a, 2)), "r"(Unchecked::at(a, 3)),
              "l"(b), "r"(int(accumulate)), "n"(B_TRANSPOSED));
    else
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
            : SUMS_32(0), SUMS_32(32)
            : "r"(Unchecked::at(a, 0)), "r"(Unchecked::at(a, 1)), "r"(Unchecked::at(a, 2)), "r"(Unchecked::at(a, 3)),
              "l"(b), "r"(int(accumulate)), "n"(B_TRANSPOSED));
#else
    const emulator::WarpgroupProduct part{&Unchecked::at(d, 0), &d.use, &Unchecked::at(a, 0), &a.use, 0, b, N, 0,
                                          B_TRANSPOSED, accumulate};
    emulator_product(&part HERE);
#endif
}
