// Runs a CUDA kernel on the CPU: the threads of a block are fibers that take turns, so that shuffles and barriers mean what
// they mean on a GPU. Blocks run one after another. Every read through the read-only cache and every atomic addition is
// checked against the buffers that were announced; a thread that waits for ever is an error, not a hang.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define EMULATED 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct Index { unsigned x; };

namespace emulation {

struct Buffer { const char* begin; const char* end; };
struct Fiber { ucontext_t context; std::vector<char> stack; bool done; };
struct Barrier { int arrived = 0; unsigned generation = 0; };

inline std::vector<Buffer> buffers;
inline long long violations = 0;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned running = 0, block = 0;
inline bool moved = false;
inline Barrier whole;
inline std::vector<Barrier> warps;
inline std::vector<uint32_t> slots;
inline void (*kernel)() = nullptr;

inline bool owned(const void* address, size_t bytes) {
    const char* p = (const char*)address;
    for (const Buffer& buffer : buffers)
        if (p >= buffer.begin && p + bytes <= buffer.end) return true;
    ++violations;
    return false;
}

inline void wait(Barrier& barrier, int count) {
    moved = true;
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) swapcontext(&fibers[running].context, &scheduler);
}

inline void enter() {
    kernel();
    fibers[running].done = true;
    moved = true;
    swapcontext(&fibers[running].context, &scheduler);
}

// Returns the number of reads and additions outside of all buffers, or -1 if the threads waited for each other for ever.
inline long long launch(unsigned blocks, unsigned threads, void (*body)()) {
    kernel = body;
    violations = 0;
    fibers.resize(threads);
    slots.assign(threads, 0);
    for (block = 0; block < blocks; ++block) {
        whole = {};
        warps.assign(threads / 32, {});
        for (Fiber& fiber : fibers) {
            fiber.stack.resize(1 << 16);
            fiber.done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, enter, 0);
        }
        for (bool left = true; left;) {
            left = moved = false;
            for (running = 0; running < threads; ++running) {
                if (fibers[running].done) continue;
                left = true;
                swapcontext(&scheduler, &fibers[running].context);
            }
            if (left && !moved) return -1;
        }
    }
    return violations;
}

}  // namespace emulation

#define threadIdx (Index{emulation::running})
#define blockIdx (Index{emulation::block})

inline void __syncthreads() { emulation::wait(emulation::whole, (int)emulation::fibers.size()); }
inline void __syncwarp() { emulation::wait(emulation::warps[emulation::running / 32], 32); }

inline float __shfl_xor_sync(unsigned, float x, int mask) {
    std::memcpy(&emulation::slots[emulation::running], &x, 4);
    __syncwarp();
    std::memcpy(&x, &emulation::slots[emulation::running ^ mask], 4);
    __syncwarp();
    return x;
}

template <typename T>
inline T __ldg(const T* address) {
    return emulation::owned(address, sizeof(T)) ? *address : T{};
}

inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long x) {
    if (!emulation::owned(address, sizeof x)) return 0;
    return (*address += x) - x;
}

template <int COUNT>
inline void add(float* address, const float* x) {
    if (!emulation::owned(address, COUNT * sizeof(float))) return;
    for (int i = 0; i < COUNT; ++i) address[i] += x[i];
}

inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
inline long long __double2ll_rn(double x) { return std::llrint(x); }
inline int min(int a, int b) { return a < b ? a : b; }

inline float half_to_float(unsigned short bits) { _Float16 x; std::memcpy(&x, &bits, 2); return x; }

inline unsigned short float_to_half(float x) {
    const _Float16 rounded = (_Float16)x;
    unsigned short bits;
    std::memcpy(&bits, &rounded, 2);
    return bits;
}
