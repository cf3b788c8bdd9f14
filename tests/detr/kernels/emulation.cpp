// Entry points for the emulated kernels. KERNEL_SOURCE names the CUDA source; its macros come from the command line.
#include "emulation.hpp"
#include KERNEL_SOURCE

static void* pointers[10];
static Sizes sizes;

static void body() {
#if BACKWARD
    deformable_backward((const value_t*)pointers[0], (const value_t*)pointers[1], (const place_t*)pointers[2],
                        (const offset_t*)pointers[3], (const weight_t*)pointers[4], (sum_t*)pointers[5],
                        (offset_grad_t*)pointers[6], (weight_t*)pointers[7], (float*)pointers[8],
                        (const double*)pointers[9], sizes);
#else
    deformable_forward((const value_t*)pointers[0], (const place_t*)pointers[1], (const offset_t*)pointers[2],
                       (const weight_t*)pointers[3], (value_t*)pointers[4], sizes);
#endif
}

// bytes[i] are those that pointer i owns.
extern "C" long long emulate(int count, void** given, const long long* bytes, const int* numbers, unsigned blocks) {
    emulation::buffers.clear();
    for (int i = 0; i < count; ++i) {
        pointers[i] = given[i];
        if (given[i]) emulation::buffers.push_back({(char*)given[i], (char*)given[i] + bytes[i]});
    }
    std::memcpy(&sizes, numbers, sizeof sizes);
    return emulation::launch(blocks, THREADS, body);
}
