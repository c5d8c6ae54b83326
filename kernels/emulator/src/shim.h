// CUDA's device language as C++: what a kernel finds in place of nvcc's built-ins. Barriers and collectives end in the scheduler
// of the emulator (src/block.rs).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulator {
struct Index {
    unsigned x, y, z;
};

// Of the thread that runs now.
struct Coordinates {
    Index thread, block, block_dim, grid_dim;
};
extern __thread Coordinates here;

inline unsigned lane() {
    return (here.thread.x + here.block_dim.x * (here.thread.y + here.block_dim.y * here.thread.z)) % 32;
}

// The table of kernels: how to call one with an array of pointers to its arguments, as cuLaunchKernel takes them.
struct Parameter {
    uint32_t size, pointer;
};
struct Kernel {
    const char* name;
    void (*call)(void* const* arguments);
    const Parameter* parameters;
    size_t count;
};
template <auto F>
struct Entry;
template <class... A, void (*F)(A...)>
struct Entry<F> {
    template <size_t... I>
    static void spread(void* const* a, std::index_sequence<I...>) {
        F(*static_cast<A*>(a[I])...);
    }
    static void call(void* const* a) { spread(a, std::index_sequence_for<A...>{}); }
    static constexpr Parameter parameters[] = {{sizeof(A), std::is_pointer_v<A>}..., {0, 0}};
};
#define EMULATED(kernel)                                                                                 \
    {                                                                                                    \
        #kernel, emulator::Entry<kernel>::call, emulator::Entry<kernel>::parameters,                     \
            sizeof(emulator::Entry<kernel>::parameters) / sizeof(emulator::Parameter) - 1                \
    }
}  // namespace emulator

// In src/calls.rs.
extern "C" {
void emulator_barrier(const char* file, int line);
// Waits for all lanes of `mask`; the last one runs `body` on what each lane has brought.
void emulator_warp(unsigned mask, const char* what, void* lane, void (*body)(void* const* lanes, unsigned mask),
                   const char* file, int line);
void* emulator_shared(const char* file, int line, size_t bytes);
void* emulator_dynamic_shared();
// Fails unless [p, p + bytes) lies in memory that the kernel was given and p is a multiple of `bytes`.
void emulator_access(const void* p, size_t bytes, const char* file, int line);
// An asynchronous copy of 16 bytes, of which the first `valid` are read and the others zero.
void emulator_async_copy(void* to, const void* from, size_t valid, const char* file, int line);
void emulator_async_commit();
void emulator_async_wait(unsigned pending);
void emulator_broken_promise(const char* condition, const char* file, int line);

void emulator_mbarrier_init(unsigned long long* barrier, unsigned count, const char* file, int line);
void emulator_mbarrier_invalidate(unsigned long long* barrier, const char* file, int line);
// One arrival; the phase waits for so many bytes more.
void emulator_mbarrier_arrive(unsigned long long* barrier, unsigned bytes, const char* file, int line);
void emulator_mbarrier_wait(unsigned long long* barrier, unsigned parity, const char* file, int line);
void emulator_named_barrier(unsigned id, unsigned threads, unsigned wait, const char* file, int line);
void emulator_bulk_copy(void* to, const void* from, unsigned bytes, unsigned long long* barrier, const char* file,
                        int line);
// The box of a tensor (`map`: 128 bytes) at `rank` coordinates.
void emulator_tensor_copy(void* to, const void* map, const int* at, unsigned rank, unsigned long long* barrier,
                          const char* file, int line);
unsigned emulator_shared_address(const void* p);
void emulator_product(const void* product, const char* file, int line);
void emulator_product_commit();
void emulator_product_wait(unsigned pending);
// Ordinary stores are visible to products from here on, and mbarriers that the thread made to the other threads.
void emulator_show_stores();
void emulator_show_mbarriers();
// The registers of each thread of the warp: `more` than before, or fewer.
void emulator_registers(unsigned count, unsigned more, const char* file, int line);
void emulator_mistake(const char* problem, const char* file, int line);
}

#define threadIdx (emulator::here.thread)
#define blockIdx (emulator::here.block)
#define blockDim (emulator::here.block_dim)
#define gridDim (emulator::here.grid_dim)
#define CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CALLER) { emulator_barrier(file, line); }

inline void __syncwarp(unsigned mask = ~0u, CALLER) {
    emulator_warp(mask, "__syncwarp", nullptr, [](void* const*, unsigned) {}, file, line);
}

namespace emulator {
// Runs f(lane's Part, every lane's Part) for all lanes of the mask once all have come.
template <class Part, class F>
inline void collective(unsigned mask, const char* what, Part& part, F, const char* file, int line) {
    emulator_warp(
        mask, what, &part,
        [](void* const* lanes, unsigned mask) { F::run(reinterpret_cast<Part* const*>(lanes), mask); }, file, line);
}

template <class T>
struct Shuffle {
    T value, result;
    unsigned source;  // a lane
    struct Exchange {
        static void run(Shuffle* const* lanes, unsigned mask) {
            for (unsigned i = 0; i < 32; ++i) {
                if (!(mask >> i & 1)) continue;
                const unsigned from = lanes[i]->source;
                // A lane that takes no part has no value: all bits set is a NaN.
                if (mask >> from & 1) lanes[i]->result = lanes[from]->value;
                else memset(&lanes[i]->result, 0xff, sizeof(T));
            }
        }
    };
};
template <class T>
inline T shuffle(unsigned mask, const char* what, T value, unsigned source, const char* file, int line) {
    Shuffle<T> part{value, value, source};
    collective(mask, what, part, typename Shuffle<T>::Exchange{}, file, line);
    return part.result;
}

struct Vote {
    bool yes;
    unsigned ballot;
    struct Count {
        static void run(Vote* const* lanes, unsigned mask) {
            unsigned ballot = 0;
            for (unsigned i = 0; i < 32; ++i)
                if (mask >> i & 1) ballot |= static_cast<unsigned>(lanes[i]->yes) << i;
            for (unsigned i = 0; i < 32; ++i)
                if (mask >> i & 1) lanes[i]->ballot = ballot;
        }
    };
};
inline unsigned vote(unsigned mask, const char* what, bool yes, const char* file, int line) {
    Vote part{yes, 0};
    collective(mask, what, part, Vote::Count{}, file, line);
    return part.ballot;
}
}  // namespace emulator

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CALLER) {
    const unsigned base = emulator::lane() / width * width;
    return emulator::shuffle(mask, "__shfl_sync", value, base + source % width, file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CALLER) {
    const unsigned lane = emulator::lane(), source = lane ^ bits;
    return emulator::shuffle(mask, "__shfl_xor_sync", value, source / width > lane / width ? lane : source, file, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, CALLER) {
    const unsigned lane = emulator::lane(), source = lane + by;
    return emulator::shuffle(mask, "__shfl_down_sync", value, source / width > lane / width ? lane : source, file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, CALLER) {
    const unsigned lane = emulator::lane();
    return emulator::shuffle(mask, "__shfl_up_sync", value, lane % width < by ? lane : lane - by, file, line);
}
inline unsigned __ballot_sync(unsigned mask, bool yes, CALLER) {
    return emulator::vote(mask, "__ballot_sync", yes, file, line);
}
inline int __any_sync(unsigned mask, bool yes, CALLER) {
    return emulator::vote(mask, "__any_sync", yes, file, line) != 0;
}
inline int __all_sync(unsigned mask, bool yes, CALLER) {
    return emulator::vote(mask, "__all_sync", yes, file, line) == mask;
}

// Only one fiber runs at a time. Not instrumented: they are ordered by themselves.
#define ATOMIC __attribute__((no_sanitize("thread"), noinline))
template <class T>
ATOMIC T atomicAdd(T* p, T x) {
    const T old = *p;
    *p = old + x;
    return old;
}
template <class T>
ATOMIC T atomicOr(T* p, T x) {
    const T old = *p;
    *p = old | x;
    return old;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float __uint_as_float(unsigned u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned u;
    memcpy(&u, &x, 4);
    return u;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }
// Of a large divisor it is zero, as the GPU has it.
inline float __fdividef(float x, float y) { return fabsf(y) > 0x1p126f ? x * 0.0f : x / y; }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
