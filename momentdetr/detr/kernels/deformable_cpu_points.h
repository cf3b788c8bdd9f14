/* Points of a query and head, from tensors to rows and shares: a part of deformable_cpu.h.
 *
 * Each stage works on flat arrays of lanes, one lane for each point, a query's filled up to whole vectors: unpack the
 * tensors, weigh by softmax, locate corners. */

#ifdef DOUBLE
typedef double NAME(Real);
typedef int64_t NAME(Int);
typedef double NAME(Value);
#define EXPONENT 52
#define BIAS 1023
#else
typedef float NAME(Real);
typedef int32_t NAME(Int);
#define EXPONENT 23
#define BIAS 127
#ifdef HALF
typedef uint16_t NAME(Value);
#else
typedef float NAME(Value);
#endif
#endif
#define Real NAME(Real)
#define Int NAME(Int)
#define Value NAME(Value)
#define Vector NAME(Vector)
#define Ints NAME(Ints)
#define Lanes NAME(Lanes)
#define Axis NAME(Axis)

#define WIDTH ((int)(BYTES / sizeof(Real)))          /* numbers in a vector */
#define BLOCK 32                                     /* channels that are kept in registers */
#define BATCH 128                                    /* lanes that are worked on at a time, or one query's if more */
#define WHOLE(count) (((count) + WIDTH - 1) / WIDTH * WIDTH) /* lanes of a query: whole vectors */
#define ROOM (MAX_POINTS + 64)                       /* lanes that there is room for */
#define NEAR 1048576                                  /* bytes of value that the processor has at hand anyway */
#define FAR 536870912.0                              /* 2^29 cells: beyond every level, and so in no need of exactness */

typedef Real Vector __attribute__((vector_size(BYTES)));
typedef Int Ints __attribute__((vector_size(BYTES)));

typedef struct { /* a batch of points; [0] and [1] are the axes in natural order, or corners in binary: y, x */
    Int level[ROOM];      /* of one query's points, counted from the first that is worked on */
    Int size[2][ROOM];    /* of that level */
    Int start[ROOM];      /* first row of that level */
    Int cell[2][ROOM];    /* that a point is counted from */
    Real rest[2][ROOM];   /* distance in cells from the middle of that cell */
    Real weight[ROOM];    /* of attention */
    Int row[4][ROOM];     /* of each corner */
    Real share[4][ROOM];  /* of each corner in the sum */
    Real dot[4][ROOM];    /* backward: each corner's value times the gradient of the output */
} Lanes;

TARGET INLINE Vector NAME(get)(const Real *from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}
TARGET INLINE void NAME(put)(Real *to, Vector v) { memcpy(to, &v, sizeof v); }
TARGET INLINE Ints NAME(get_ints)(const Int *from) {
    Ints v;
    memcpy(&v, from, sizeof v);
    return v;
}
TARGET INLINE Vector NAME(select)(Ints mask, Vector yes, Vector no) {
    return (Vector)((mask & (Ints)yes) | (~mask & (Ints)no));
}
TARGET INLINE Vector NAME(all)(Real x) { return x - (Vector){0}; }

/* Lane i is number from[i] of `v`, and then of `w`. */
TARGET INLINE Vector NAME(pick)(Vector v, Vector w, Ints from) {
#if defined(__clang__) || !defined(__GNUC__)
    Vector both[2] = {v, w}, picked;
    for (int i = 0; i < WIDTH; i++) picked[i] = both[from[i] / WIDTH][from[i] % WIDTH];
    return picked;
#else
    return __builtin_shuffle(v, w, from);
#endif
}
static const Int NAME(numbers)[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
/* Lane i is start + step * i. */
TARGET INLINE Ints NAME(count_lanes)(Int start, Int step) { return NAME(get_ints)(NAME(numbers)) * step + start; }
TARGET INLINE Vector NAME(highest)(Vector v) { /* of all lanes, in all lanes */
    UNROLL for (int step = WIDTH / 2; step; step /= 2) {
        Vector other = NAME(pick)(v, v, NAME(count_lanes)(step, 1));
        v = NAME(select)(v > other, v, other);
    }
    return v;
}
TARGET INLINE Vector NAME(total)(Vector v) { /* of all lanes, in all lanes */
    UNROLL for (int step = WIDTH / 2; step; step /= 2) v += NAME(pick)(v, v, NAME(count_lanes)(step, 1));
    return v;
}

/* Values are widened when read and rounded to nearest, ties to even, when written. */
#ifdef HALF
typedef uint16_t NAME(Shorts) __attribute__((vector_size(BYTES / 2)));
typedef uint32_t NAME(Words) __attribute__((vector_size(BYTES)));
TARGET INLINE Vector NAME(load)(const Value *from) {
    NAME(Shorts) half;
    memcpy(&half, from, sizeof half);
    return (Vector)(__builtin_convertvector(half, NAME(Words)) << 16);
}
TARGET INLINE void NAME(store)(Value *to, Vector v) {
    NAME(Words) bits = (NAME(Words))v, nan = (NAME(Words))(v != v);
    bits = (((bits + 0x7fff + ((bits >> 16) & 1)) & ~nan) | ((bits | 0x400000) & nan)) >> 16;
    NAME(Shorts) half = __builtin_convertvector(bits, NAME(Shorts));
    memcpy(to, &half, sizeof half);
}
TARGET INLINE Real NAME(load_one)(const Value *from) {
    uint32_t bits = (uint32_t)*from << 16;
    Real x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
TARGET INLINE void NAME(store_one)(Value *to, Real x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    *to = (uint16_t)((x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
TARGET INLINE Vector NAME(load)(const Value *from) { return NAME(get)(from); }
TARGET INLINE void NAME(store)(Value *to, Vector v) { NAME(put)(to, v); }
TARGET INLINE Real NAME(load_one)(const Value *from) { return *from; }
TARGET INLINE void NAME(store_one)(Value *to, Real x) { *to = x; }
#endif

/* `count` offsets or logits from number `at` on, widened into `room` and filled up to whole vectors if need be. */
TARGET INLINE const Real *NAME(widen)(const void *from, int64_t type, int64_t at, int64_t count, Real rest, Real *room) {
    int64_t i = 0;
    if (type != BFLOAT16) {
        if (count % WIDTH == 0) return (const Real *)from + at;
        memcpy(room, (const Real *)from + at, (size_t)count * sizeof(Real)), i = count;
    }
    for (const uint16_t *half = (const uint16_t *)from + at; i < count; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        room[i] = x;
    }
    for (; i % WIDTH; i++) room[i] = rest;
    return room;
}

/* A place in cells, counted from the level's edge: its cell, and how far from the middle of that it is. */
TARGET INLINE void NAME(split)(double place, Int *cell, Real *rest) {
    double whole = floor(place);
    int near = place > -2 * FAR && place < 2 * FAR; /* no for NaN */
    *cell = near ? (Int)whole : (Int)(-2 * FAR);
    *rest = near ? (Real)(place - whole - 0.5) : 0;
}

/* What queries `from` to `to`, of all samples together, have for all heads: (D, 3, L), on each level the cell of the
 * reference, its distance from the middle of that, and how many cells an offset of one is. */
TARGET static void NAME(refer)(const Args *a, int64_t from, int64_t to) {
    int64_t L = a->levels, D = a->dims, A = a->kind == BOXES ? 2 * D : D;
    if (a->kind == PLAIN) return;
    for (int64_t query = from; query < to; query++)
        for (int64_t d = 0; d < D; d++) {
            Real *base = (Real *)a->bases + (query * D + d) * 3 * L;
            for (int64_t level = 0; level < L; level++) {
                const double *reference = a->references + (query * L + level) * A;
                double size = (double)a->shapes[level * D + d];
                Int cell;
                NAME(split)(reference[d] * size, &cell, base + L + level);
                memcpy(base + level, &cell, sizeof cell);
                base[2 * L + level] = a->kind == BOXES ? (Real)(reference[D + d] * size * 0.5 / (double)a->points) : 1;
            }
        }
}

/* What never changes about the points of a query on levels `from` to `to`. Rows are counted from the first level's. */
TARGET INLINE void NAME(prepare)(const Args *a, Lanes *lanes, int64_t from, int64_t to, int D) {
    int64_t at = 0, start = 0;
    for (int64_t level = from; level < to; level++) {
        const int64_t *shape = a->shapes + level * D;
        for (int64_t p = 0; p < a->points; p++, at++) {
            lanes->level[at] = (Int)(level - from), lanes->start[at] = (Int)start;
            for (int d = 0; d < D; d++) lanes->size[d][at] = (Int)shape[d];
        }
        start += shape[0] * (D == 2 ? shape[1] : 1);
    }
    for (; at % WIDTH; at++) /* the rest of the last vector is computed, too, and not used */
        lanes->level[at] = lanes->start[at] = 0, lanes->size[0][at] = lanes->size[1][at] = 1;
}

/* A number of each level, for a vector of points. */
TARGET INLINE Vector NAME(spread)(const Real *numbers, int64_t levels, Ints level) {
    if (levels <= WIDTH) {
        Vector all = NAME(get)(numbers);
        return NAME(pick)(all, all, level);
    }
    Vector v;
    for (int lane = 0; lane < WIDTH; lane++) v[lane] = numbers[level[lane]];
    return v;
}

/* The points of a query and head on levels `from` to `to`, as lanes from `at` on. */
TARGET INLINE void NAME(unpack)(const Args *a, Lanes *lanes, int64_t at, int64_t query, int64_t head, int64_t from,
                                int64_t to, int D) {
    int64_t P = a->points, L = a->levels, K = (to - from) * P, first = ((query * a->heads + head) * L + from) * P * D;
    Real room[ROOM * 2];
    const Real *offset = NAME(widen)(a->offsets, a->offsets_type, first, K * D, 0, room);
    if (a->kind == PLAIN) {
        for (int64_t k = 0; k < K * D; k++) {
            int64_t d = k % D, lane = at + k / D;
            double size = (double)lanes->size[d][k / D];
            NAME(split)(offset[k] * size, lanes->cell[d] + lane, lanes->rest[d] + lane);
        }
        return;
    }
    const Real *base = (const Real *)a->bases + query * D * 3 * L + from;
    for (int64_t k = 0; k < K; k += WIDTH) {
        Ints level = NAME(get_ints)(lanes->level + k);
        Vector moved[2] = {NAME(get)(offset + k * D)};
        if (D == 2) {
            Vector more = k * 2 + WIDTH < K * 2 ? NAME(get)(offset + k * 2 + WIDTH) : (Vector){0};
            moved[1] = NAME(pick)(moved[0], more, NAME(count_lanes)(1, 2));
            moved[0] = NAME(pick)(moved[0], more, NAME(count_lanes)(0, 2));
        }
        UNROLL for (int d = 0; d < D; d++) {
            const Real *numbers = base + d * 3 * L;
            if (a->kind == BOXES) moved[d] *= NAME(spread)(numbers + 2 * L, to - from, level);
            NAME(put)(lanes->rest[d] + at + k, moved[d] + NAME(spread)(numbers + L, to - from, level));
            NAME(put)((Real *)lanes->cell[d] + at + k, NAME(spread)(numbers, to - from, level));
        }
    }
}

/* Ask for what the queries from `from` to `to` will need: a head's numbers lie so far apart that nobody foresees it. */
TARGET INLINE void NAME(expect)(const Args *a, int64_t sample, int64_t head, int64_t from, int64_t to, const void *output) {
    int64_t K = a->levels * a->points, line = 64;
    int64_t offsets = K * a->dims * (int64_t)(a->offsets_type == BFLOAT16 ? 2 : sizeof(Real));
    int64_t logits = K * (int64_t)(a->logits_type == BFLOAT16 ? 2 : sizeof(Real)), row = a->channels * (int64_t)sizeof(Value);
    for (int64_t query = from; query < to; query++) {
        int64_t at = (sample * a->queries + query) * a->heads + head;
        for (int64_t i = 0; i < offsets; i += line) __builtin_prefetch((const char *)a->offsets + at * offsets + i);
        for (int64_t i = 0; i < logits; i += line) __builtin_prefetch((const char *)a->logits + at * logits + i);
        for (int64_t i = 0; i < row; i += line) __builtin_prefetch((const char *)output + at * row + i);
    }
}

/* e^x for x <= 0, to a few units in the last place; NaN stays NaN. */
TARGET INLINE Vector NAME(exponential)(Vector x) {
#ifdef DOUBLE
    const Real high = 0.693147180369123816490, low = 1.90821492927058770002e-10, least = -708;
    static const Real factors[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                   1.0 / 40320,      1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
                                   1.0 / 6,          0.5,             1,              1};
#else
    const Real high = 0.693359375f, low = -2.12194440e-4f, least = -87;
    static const Real factors[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
#endif
    Ints tiny = x < NAME(all)(least);
    x = NAME(select)(tiny, NAME(all)(least), x);
    Ints power = __builtin_convertvector(x * (Real)1.44269504088896340736 - (Real)0.5, Ints); /* to nearest: x <= 0 */
    Vector whole = __builtin_convertvector(power, Vector);
    x = x - whole * high - whole * low;
    Vector sum = NAME(all)(factors[0]);
    UNROLL for (size_t i = 1; i < sizeof factors / sizeof *factors; i++) sum = sum * x + factors[i];
    return (Vector)((Ints)(sum * (Vector)((power + BIAS) << EXPONENT)) & ~tiny);
}

/* Softmax over one query and head: `count` logits, filled up with -infinity to whole vectors of weights. */
TARGET INLINE void NAME(softmax)(const Real *logits, Real *weights, int64_t count) {
    Vector top = NAME(get)(logits), sum = {0};
    for (int64_t i = WIDTH; i < count; i += WIDTH) {
        Vector v = NAME(get)(logits + i);
        top = NAME(select)(v > top, v, top);
    }
    top = NAME(highest)(top);
    for (int64_t i = 0; i < count; i += WIDTH) {
        Vector e = NAME(exponential)(NAME(get)(logits + i) - top);
        NAME(put)(weights + i, e), sum += e;
    }
    sum = 1 / NAME(total)(sum);
    for (int64_t i = 0; i < count; i += WIDTH) NAME(put)(weights + i, NAME(get)(weights + i) * sum);
}

/* Attention weights of one query and head, filled up to whole vectors. */
TARGET INLINE void NAME(weights_of)(const Args *a, int64_t row, Real *weights, int64_t count) {
    Real room[ROOM];
    const Real *logits = NAME(widen)(a->logits, a->logits_type, row * count, count, (Real)-INFINITY, room);
    if (a->kind == PLAIN)
        memcpy(weights, logits, (size_t)count * sizeof *weights);
    else
        NAME(softmax)(logits, weights, count);
}

typedef struct { /* one axis of a vector of points */
    Vector lower, upper;       /* the corners' weights, zero outside */
    Ints lower_at, upper_at;   /* their cells, 0 outside */
    Ints lower_in, upper_in;   /* whether they are inside */
} Axis;

/* `at` is a lane of the batch, `k` of its query. */
TARGET INLINE Axis NAME(axis)(const Lanes *lanes, int64_t at, int64_t k, int d) {
    Vector rest = NAME(get)(lanes->rest[d] + at), far = NAME(all)(FAR);
    Ints size = NAME(get_ints)(lanes->size[d] + k);
    Axis axis;
    Ints finite = (rest > -far) & (rest < far); /* no for NaN */
    rest = NAME(select)(finite, rest, -far);
    Ints whole = __builtin_convertvector(rest, Ints);
    whole += __builtin_convertvector(whole, Vector) > rest; /* true is -1: from rounding towards zero to the floor */
    axis.upper = rest - __builtin_convertvector(whole, Vector);
    axis.lower = 1 - axis.upper;
    axis.lower_at = NAME(get_ints)(lanes->cell[d] + at) + whole;
    axis.upper_at = axis.lower_at + 1;
    axis.lower_in = finite & (axis.lower_at >= 0) & (axis.lower_at < size);
    axis.upper_in = finite & (axis.upper_at >= 0) & (axis.upper_at < size);
    axis.lower_at &= axis.lower_in, axis.upper_at &= axis.upper_in;
    axis.lower = (Vector)((Ints)axis.lower & axis.lower_in), axis.upper = (Vector)((Ints)axis.upper & axis.upper_in);
    return axis;
}

/* Rows and shares of all corners of a query's `count` points. */
TARGET INLINE void NAME(locate)(Lanes *lanes, int64_t at, int64_t count, int D) {
    for (int64_t k = 0; k < count; k += WIDTH, at += WIDTH) {
        Vector weight = NAME(get)(lanes->weight + at);
        Ints start = NAME(get_ints)(lanes->start + k);
        Axis x = NAME(axis)(lanes, at, k, 0);
        if (D == 1) {
            Ints rows[2] = {start + x.lower_at, start + x.upper_at};
            Vector shares[2] = {x.lower * weight, x.upper * weight};
            for (int c = 0; c < 2; c++)
                memcpy(lanes->row[c] + at, rows + c, BYTES), NAME(put)(lanes->share[c] + at, shares[c]);
        } else {
            Axis y = NAME(axis)(lanes, at, k, 1);
            Ints width = NAME(get_ints)(lanes->size[0] + k);
            Ints lower = start + y.lower_at * width, upper = start + y.upper_at * width;
            Vector above = y.lower * weight, below = y.upper * weight;
            Ints rows[4] = {lower + x.lower_at, lower + x.upper_at, upper + x.lower_at, upper + x.upper_at};
            Vector shares[4] = {above * x.lower, above * x.upper, below * x.lower, below * x.upper};
            for (int c = 0; c < 4; c++)
                memcpy(lanes->row[c] + at, rows + c, BYTES), NAME(put)(lanes->share[c] + at, shares[c]);
        }
    }
}
