/* Deformable attention on CPUs: plain C with OpenMP and GNU vector extensions; needs gcc or clang and no headers but
 * the standard ones. reference.py says what is computed, cpu.py calls it, deformable_cpu.h holds the arithmetic, which
 * this file includes once for each instruction set and type of value.
 *
 * Forward. The rows of one head lie H * C apart. Where there are many queries and rows, a few heads at a time ("slots")
 * are first copied so that their rows lie side by side; then threads share the blocks of queries.
 *
 * Backward. One task for each sample and head, or for each of its levels where threads are many: it alone writes its
 * cells of grad_value and its points' gradients, in the order of the queries, so nothing is atomic and every run gives
 * the same bits, however many threads there are. It copies its own cells where that pays. Where tasks
 * are levels, or references want gradients, softmax comes before them, and after them a pass over what they left. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

enum { PLAIN, POINTS, BOXES };       /* what offsets are relative to */
enum { FLOAT32, BFLOAT16, FLOAT64 }; /* types of tensors */
enum { MAX_POINTS = 1024 };          /* of all levels together */

typedef struct {
    int64_t batch, cells, queries, heads, channels, levels, points, dims;
    int64_t kind;                                  /* PLAIN, POINTS or BOXES */
    int64_t value_type, offsets_type, logits_type; /* the latter two: the arithmetic's own type or BFLOAT16 */
    int64_t instructions;                          /* 0 portable, 1 AVX2, 2 AVX-512 */
    int64_t threads;
    int64_t slots;          /* forward: heads copied at a time; backward: rows copied by a task; 0: used in place */
    int64_t by_level;       /* backward: whether a task is one level of a head, not all */
    const int64_t *shapes;  /* (L, D), natural order */
    const void *value;      /* (B, S, H, C) */
    const double *references; /* (B, Q, L, D or 2D), not for PLAIN */
    void *bases;              /* (B, Q, D, 3, L) and room for a vector, filled here; not for PLAIN */
    const void *offsets;    /* (B, Q, H, L, P, D) */
    const void *logits;     /* (B, Q, H, L, P) */
    void *copies;           /* forward: slots x (S, C) values; backward: threads x (slots, C) */
    void *output;           /* (B, Q, H, C) values */
    /* backward only; REAL is float, or double for values of FLOAT64 */
    const void *grad_output; /* (B, Q, H, C) values */
    void *weights;           /* (B, Q, H, L, P) REAL, filled here; NULL: tasks are heads and do all on their own */
    void *grad_copies;       /* threads x (slots, C) REAL */
    void *grad_value;        /* (B, S, H, C): values where tasks copy, otherwise REAL and zero at the start */
    void *grad_offsets;      /* (B, Q, H, L, P, D) REAL */
    void *grad_logits;       /* (B, Q, H, L, P) REAL */
    double *grad_references; /* as references; NULL: not asked for */
} Args;

typedef struct { /* one instruction set's functions for one type of value */
    void (*refer)(const Args *, int64_t from, int64_t to);
    void (*copy)(const Args *, int64_t slot, int64_t head, int64_t from, int64_t to);
    void (*look)(const Args *, int64_t slot, int64_t head, int64_t from, int64_t to);
    void (*weigh)(const Args *, int64_t from, int64_t to);
    void (*scatter)(const Args *, int64_t thread, int64_t head, int64_t from_level, int64_t to_level);
    void (*finish)(const Args *, int64_t from, int64_t to);
} Functions;

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, SUFFIX)

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The first row of a level; of the level after the last: the number of rows. */
static inline int64_t first_row(const Args *a, int64_t level) {
    int64_t row = 0;
    for (int64_t l = 0; l < level; l++) row += a->shapes[l * a->dims] * (a->dims == 2 ? a->shapes[l * a->dims + 1] : 1);
    return row;
}

/* The same arithmetic for every instruction set: TARGET, BYTES of a vector; and for every type of value. */
#define TARGET
#define BYTES 16
#define SUFFIX _portable_float
#include "deformable_cpu.h"
#undef SUFFIX
#define SUFFIX _portable_bfloat
#define HALF
#include "deformable_cpu.h"
#undef HALF
#undef SUFFIX
#define SUFFIX _portable_double
#define DOUBLE
#include "deformable_cpu.h"
#undef DOUBLE
#undef SUFFIX
#undef TARGET
#undef BYTES

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2,fma")))
#define BYTES 32
#define SUFFIX _avx2_float
#include "deformable_cpu.h"
#undef SUFFIX
#define SUFFIX _avx2_bfloat
#define HALF
#include "deformable_cpu.h"
#undef HALF
#undef SUFFIX
#define SUFFIX _avx2_double
#define DOUBLE
#include "deformable_cpu.h"
#undef DOUBLE
#undef SUFFIX
#undef TARGET
#undef BYTES

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#define BYTES 64
#define SUFFIX _avx512_float
#include "deformable_cpu.h"
#undef SUFFIX
#define SUFFIX _avx512_bfloat
#define HALF
#include "deformable_cpu.h"
#undef HALF
#undef SUFFIX
#define SUFFIX _avx512_double
#define DOUBLE
#include "deformable_cpu.h"
#undef DOUBLE
#undef SUFFIX

static const Functions *const FUNCTIONS[3][3] = {
    {&functions_portable_float, &functions_portable_bfloat, &functions_portable_double},
    {&functions_avx2_float, &functions_avx2_bfloat, &functions_avx2_double},
    {&functions_avx512_float, &functions_avx512_bfloat, &functions_avx512_double},
};
#else
static const Functions *const FUNCTIONS[1][3] = {
    {&functions_portable_float, &functions_portable_bfloat, &functions_portable_double},
};
#endif

/* The best instruction set that this processor has. */
int64_t momentdetr_instructions(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return 1;
#else
    return 0;
#endif
}

int64_t momentdetr_arguments_size(void) { return sizeof(Args); }

/* New memory is handed out page by page, which takes longer than filling it; ask for large pages where that pays. */
static void expect_to_fill(void *memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    enum { PAGE = 4096, MANY = 8 << 20 };
    uintptr_t start = (uintptr_t)memory, first = (start + PAGE - 1) / PAGE * PAGE;
    uintptr_t end = (start + (uintptr_t)bytes) / PAGE * PAGE;
    if (memory && bytes >= MANY) madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

static int64_t bytes_of(int64_t type) { return type == BFLOAT16 ? 2 : type == FLOAT32 ? 4 : 8; }

enum { QUERIES = 256, FEW = 16, ROWS = 1024 }; /* of a piece of work */

/* Rows are used where they are. All heads of a query look at about the same place, where their rows are neighbours. */
static void forward_in_place(const Args *a, const Functions *f) {
    int64_t blocks = (a->queries + FEW - 1) / FEW;
#pragma omp parallel for num_threads((int)a->threads) schedule(dynamic)
    for (int64_t i = 0; i < a->batch * blocks; i++) {
        int64_t sample = i / blocks, from = i % blocks * FEW;
        int64_t to = least(from + FEW, a->queries);
        f->refer(a, sample * a->queries + from, sample * a->queries + to);
        for (int64_t head = 0; head < a->heads; head++) f->look(a, 0, sample * a->heads + head, from, to);
    }
}

/* A few heads at a time are copied, and then read by all threads. */
static void forward_copied(const Args *a, const Functions *f) {
    int64_t heads = a->batch * a->heads, copies = (a->cells + ROWS - 1) / ROWS;
    int64_t blocks = (a->queries + QUERIES - 1) / QUERIES;
    int64_t rows = a->batch * a->queries, pieces = (rows + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads((int)a->threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < pieces; i++) f->refer(a, i * QUERIES, least((i + 1) * QUERIES, rows));
        for (int64_t first = 0; first < heads; first += a->slots) {
            int64_t count = least(a->slots, heads - first);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count * copies; i++) {
                int64_t slot = i / copies, from = i % copies * ROWS;
                f->copy(a, slot, first + slot, from, least(from + ROWS, a->cells));
            }
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < count * blocks; i++) {
                int64_t slot = i / blocks, from = i % blocks * QUERIES;
                f->look(a, slot, first + slot, from, least(from + QUERIES, a->queries));
            }
        }
    }
}

void momentdetr_forward(const Args *a) {
    const Functions *f = FUNCTIONS[a->instructions][a->value_type];
    expect_to_fill(a->output, a->batch * a->queries * a->heads * a->channels * bytes_of(a->value_type));
    if (a->slots)
        forward_copied(a, f);
    else
        forward_in_place(a, f);
}

void momentdetr_backward(const Args *a) {
    const Functions *f = FUNCTIONS[a->instructions][a->value_type];
    int64_t heads = a->batch * a->heads, rows = a->batch * a->queries, blocks = (rows + QUERIES - 1) / QUERIES;
    int64_t tasks = a->by_level ? a->levels : 1, real = a->value_type == FLOAT64 ? 8 : 4;
    int64_t values = a->batch * a->cells * a->heads * a->channels, points = rows * a->heads * a->levels * a->points;
    expect_to_fill(a->grad_value, values * (a->slots ? bytes_of(a->value_type) : real));
    expect_to_fill(a->grad_offsets, points * a->dims * real);
    expect_to_fill(a->grad_logits, points * real);
#pragma omp parallel num_threads((int)a->threads)
    {
#ifdef _OPENMP
        int64_t thread = omp_get_thread_num();
#else
        int64_t thread = 0;
#endif
#pragma omp for schedule(static)
        for (int64_t i = 0; i < blocks; i++) {
            f->refer(a, i * QUERIES, least((i + 1) * QUERIES, rows));
            if (a->weights) f->weigh(a, i * QUERIES, least((i + 1) * QUERIES, rows));
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * tasks; i++) {
            int64_t level = i / heads;
            f->scatter(a, thread, i % heads, level, tasks == 1 ? a->levels : level + 1);
        }
        if (a->weights)
#pragma omp for schedule(static)
            for (int64_t i = 0; i < blocks; i++) f->finish(a, i * QUERIES, least((i + 1) * QUERIES, rows));
    }
}
