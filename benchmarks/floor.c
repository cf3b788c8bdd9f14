/* What this machine can do at most, for benchmarks/kernels.py: best of several runs, all threads. GB/s and GFLOP/s. */
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef float Vector __attribute__((vector_size(32)));
#define TARGET __attribute__((target("avx2,fma")))

/* Copy `bytes` in all, each thread a part; bytes read and written. */
double copy(char *to, const char *from, int64_t bytes, int threads) {
    double best = 0;
    for (int run = 0; run < 5; run++) {
        double start = omp_get_wtime();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int part = 0; part < threads; part++) {
            int64_t size = bytes / threads;
            memcpy(to + part * size, from + part * size, (size_t)size);
        }
        double rate = 2e-9 * (double)bytes / (omp_get_wtime() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

/* Each thread reads its own `bytes`, small enough for its second-level cache, again and again. */
TARGET double read_cache(const float *from, int64_t bytes, int threads) {
    double best = 0;
    enum { REPEATS = 200 };
    for (int run = 0; run < 5; run++) {
        double start = omp_get_wtime();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int part = 0; part < threads; part++) {
            const Vector *own = (const Vector *)(from + part * (bytes / 4));
            Vector a = {0}, b = {0}, c = {0}, d = {0};
            for (int repeat = 0; repeat < REPEATS; repeat++) {
                for (int64_t i = 0; i + 4 <= bytes / 32; i += 4) a += own[i], b += own[i + 1], c += own[i + 2], d += own[i + 3];
                __asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d) : : "memory");
            }
        }
        double rate = 1e-9 * (double)bytes * threads * REPEATS / (omp_get_wtime() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

/* Fused multiply-adds on AVX2 registers. */
TARGET double multiply(int threads) {
    double best = 0;
    enum { REPEATS = 10000000 };
    for (int run = 0; run < 5; run++) {
        double start = omp_get_wtime();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int part = 0; part < threads; part++) {
            Vector s[10], x = {1e-9f}, y = {1e-9f};
            for (int i = 0; i < 10; i++) s[i] = (Vector){0};
            for (int repeat = 0; repeat < REPEATS; repeat++)
                for (int i = 0; i < 10; i++) {
                    s[i] = s[i] * x + y;
                    __asm__ volatile("" : "+x"(s[i]));
                }
        }
        double rate = 1e-9 * 2 * 8 * 10.0 * REPEATS * threads / (omp_get_wtime() - start);
        best = rate > best ? rate : best;
    }
    return best;
}
