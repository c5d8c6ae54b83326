// What differs between nvcc and the emulator (kernels/emulator), which compiles these files as C++ with its shim in front.
#pragma once

#ifdef __CUDACC__
// An array in the block's shared memory.
#define SHARED(type, name, count) __shared__ type name[count]
// The shared memory whose size the launch gives, aligned to 1024 bytes, as swizzled tiles are.
#define DYNAMIC_SHARED(type, name)                             \
    extern __shared__ __align__(1024) unsigned char dynamic_[]; \
    type* const name = reinterpret_cast<type*>(dynamic_)
// What the host has promised about sizes. The emulator checks it, the compiler may build on it.
#define EXPECTS(condition) __builtin_assume(condition)
// WHERE ends the parameters, HERE the arguments, of a wrapper whose caller's line the emulator wants to name; HERE_ALONE is all of
// the arguments.
#define WHERE
#define HERE
#define HERE_ALONE
#else
#define SHARED(type, name, count) \
    type* const name = static_cast<type*>(emulator_shared(__FILE__, __LINE__, sizeof(type) * (count)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator_dynamic_shared())
#define EXPECTS(condition) ((condition) ? void() : emulator_broken_promise(#condition, __FILE__, __LINE__))
#define WHERE , const char* file = __builtin_FILE(), int line = __builtin_LINE()
#define HERE , file, line
#define HERE_ALONE file, line
#endif
