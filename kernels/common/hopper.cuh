// Hopper's asynchronous parts (sm_90a): mbarriers, the copy engine, barriers of parts of a block, registers moved between warps.
//
// An mbarrier completes a phase when its arrivals have come and the bytes that they announced were copied; phases have parity
// 0, 1, 0, … A wait for the parity of the phase before the first passes at once. Shared memory that ordinary stores wrote is
// shown to the copy engine and to WGMMA products by a fence, before the barrier that tells of it.
#pragma once
#include "common/bf16.cuh"

using Mbarrier = unsigned long long;

// A tensor in global memory and the box of it that a copy takes, made by the host: CUtensorMap. A kernel takes it as
// `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
    unsigned long long opaque[16];
};

__device__ inline unsigned shared_address(const void* p) {
#ifdef __CUDACC__
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
#else
    return emulator_shared_address(p);
#endif
}

// Of `count` arrivals a phase. By one thread; the others see it after `show_mbarriers` and a barrier of the block.
__device__ inline void mbarrier_init(Mbarrier* barrier, unsigned count WHERE) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#else
    emulator_mbarrier_init(barrier, count HERE);
#endif
}

__device__ inline void show_mbarriers() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    emulator_show_mbarriers();
#endif
}

// Before its memory is used for something else.
__device__ inline void mbarrier_invalidate(Mbarrier* barrier WHERE) {
#ifdef __CUDACC__
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    emulator_mbarrier_invalidate(barrier HERE);
#endif
}

__device__ inline void mbarrier_arrive(Mbarrier* barrier WHERE) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    emulator_mbarrier_arrive(barrier, 0 HERE);
#endif
}

// Arrives, and announces so many bytes that copies will bring in this phase.
__device__ inline void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes WHERE) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    emulator_mbarrier_arrive(barrier, bytes HERE);
#endif
}

// Until the phase of this parity is complete.
__device__ inline void mbarrier_wait(Mbarrier* barrier, unsigned parity WHERE) {
#ifdef __CUDACC__
    unsigned complete;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(complete)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!complete);
#else
    emulator_mbarrier_wait(barrier, parity HERE);
#endif
}

// `bytes` in order, a multiple of 16 as are both addresses; the mbarrier counts them.
__device__ inline void bulk_copy(void* to_shared, const void* from, unsigned bytes, Mbarrier* barrier WHERE) {
#ifdef __CUDACC__
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to_shared)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
#else
    emulator_bulk_copy(to_shared, from, bytes, barrier HERE);
#endif
}

// The box of a matrix that begins at column x of row y; what lies outside is zero, and counts.
__device__ inline void tensor_copy(void* to_shared, const TensorMap* map, int x, int y, Mbarrier* barrier WHERE) {
#ifdef __CUDACC__
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(to_shared)),
        "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier))
        : "memory");
#else
    const int at[] = {x, y};
    emulator_tensor_copy(to_shared, map, at, 2, barrier HERE);
#endif
}

// Of matrix z, likewise.
__device__ inline void tensor_copy(void* to_shared, const TensorMap* map, int x, int y, int z, Mbarrier* barrier WHERE) {
#ifdef __CUDACC__
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
            "r"(shared_address(to_shared)),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
        : "memory");
#else
    const int at[] = {x, y, z};
    emulator_tensor_copy(to_shared, map, at, 3, barrier HERE);
#endif
}

// Shows what this thread has stored in shared memory to the copy engine and to products.
__device__ inline void show_stores() {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    emulator_show_stores();
#endif
}

// Barrier 1 to 15 of `threads` threads, whole warps; 0 is __syncthreads'.
__device__ inline void barrier_sync(unsigned id, unsigned threads WHERE) {
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulator_named_barrier(id, threads, 1 HERE);
#endif
}

// Counts as arrived there, and goes on.
__device__ inline void barrier_arrive(unsigned id, unsigned threads WHERE) {
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulator_named_barrier(id, threads, 0 HERE);
#endif
}

// All four warps of a warpgroup: the registers that a thread may use from here on, fewer or more than it was launched with.
template <int REGISTERS>
__device__ inline void give_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#else
    emulator_registers(REGISTERS, 0, __FILE__, __LINE__);
#endif
}
template <int REGISTERS>
__device__ inline void take_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#else
    emulator_registers(REGISTERS, 1, __FILE__, __LINE__);
#endif
}

// 2 to the x, by the special function unit.
__device__ inline float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}
