// Asynchronous copies from global to shared memory (cp.async). They belong to the thread that asks: it waits for its own, and a
// barrier shows them to the others.
#pragma once
#include "common/target.cuh"

// Copies 16 bytes, or zeroes them if `zero` (then nothing is read).
__device__ inline void async_copy16(void* to_shared, const void* from, bool zero = false WHERE) {
#ifdef __CUDACC__
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(zero ? 0 : 16) : "memory");
#else
    emulator_async_copy(to_shared, from, zero ? 0 : 16 HERE);
#endif
}

// Ends a group: the copies issued since the last one.
__device__ inline void async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator_async_commit();
#endif
}

// Waits until at most the last PENDING groups are under way.
template <int PENDING>
__device__ inline void async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    emulator_async_wait(PENDING);
#endif
}
