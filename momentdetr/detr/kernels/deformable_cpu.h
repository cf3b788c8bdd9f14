/* The arithmetic of deformable_cpu.c for one instruction set (TARGET, BYTES of a vector) and one type of value (float;
 * HALF: bfloat16 with float arithmetic; DOUBLE), in names that end in SUFFIX. No include guard: included many times.
 *
 * Work goes by small batches of queries in stages, each over flat arrays of lanes, one lane for each point: unpack the
 * tensors, weigh by softmax, locate corners (vectors of points), then read or write rows (vectors of channels). */

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
#define ROOM (MAX_POINTS + 64)                       /* lanes that there is room for */
#define FAR 536870912.0                              /* 2^29 cells: beyond every level, and so in no need of exactness */

typedef Real Vector __attribute__((vector_size(BYTES)));
typedef Int Ints __attribute__((vector_size(BYTES)));

typedef struct { /* a batch of points; [0] and [1] are the axes in natural order, or corners in binary: y, x */
    Real rest[2][ROOM];   /* distance in cells from the middle of the cell that it is counted from */
    Int cell[2][ROOM];    /* that cell */
    Real weight[ROOM];    /* of attention */
    Int size[2][ROOM];    /* of the point's level */
    Int start[ROOM];      /* first row of that level */
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

/* Offsets or logits from number `at` on, widened into `room` if need be. */
TARGET INLINE const Real *NAME(widen)(const void *from, int64_t type, int64_t at, int64_t count, Real *room) {
    if (type != BFLOAT16) return (const Real *)from + at;
    const uint16_t *half = (const uint16_t *)from + at;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        room[i] = x;
    }
    return room;
}

/* A place in cells, counted from the level's edge: its cell, and how far from the middle of that it is. */
TARGET INLINE void NAME(split)(double place, Int *cell, Real *rest) {
    double whole = floor(place);
    int near = place > -2 * FAR && place < 2 * FAR; /* no for NaN */
    *cell = near ? (Int)whole : (Int)(-2 * FAR);
    *rest = near ? (Real)(place - whole - 0.5) : 0;
}

/* The P points of one level, query and head, as lanes from `at` on. */
TARGET INLINE void NAME(unpack_level)(const Args *a, Lanes *lanes, int64_t at, const double *reference, const Real *offset,
                                      int64_t level, int D, int64_t P) {
    for (int d = 0; d < D; d++) {
        double size = (double)a->shapes[level * D + d];
        Real *rest = lanes->rest[d] + at;
        Int *cell = lanes->cell[d] + at;
        if (a->kind == PLAIN) {
            for (int64_t p = 0; p < P; p++) NAME(split)(offset[p * D + d] * size, cell + p, rest + p);
            continue;
        }
        Int whole;
        Real middle, scale = 1;
        NAME(split)(reference[d] * size, &whole, &middle);
        if (a->kind == BOXES) scale = (Real)(reference[D + d] * size * 0.5 / (double)P);
        for (int64_t p = 0; p < P; p++) cell[p] = whole, rest[p] = middle + scale * offset[p * D + d];
    }
}

TARGET INLINE void NAME(unpack)(const Args *a, Lanes *lanes, int64_t at, int64_t query, int64_t head, int64_t from,
                                int64_t to, int D) {
    int64_t P = a->points, first = ((query * a->heads + head) * a->levels + from) * P * D;
    int64_t A = a->kind == BOXES ? 2 * D : D;
    Real room[MAX_POINTS * 2];
    const Real *offset = NAME(widen)(a->offsets, a->offsets_type, first, (to - from) * P * D, room);
    for (int64_t level = from; level < to; level++, at += P, offset += P * D) {
        const double *reference = a->kind == PLAIN ? NULL : a->references + (query * a->levels + level) * A;
        if (P == 4)
            NAME(unpack_level)(a, lanes, at, reference, offset, level, D, 4);
        else
            NAME(unpack_level)(a, lanes, at, reference, offset, level, D, P);
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

/* What never changes about the lanes of a batch: their levels. Rows are counted from the first level's. */
TARGET INLINE void NAME(prepare)(const Args *a, Lanes *lanes, int64_t queries, int64_t from, int64_t to, int D) {
    int64_t at = 0;
    for (int64_t query = 0; query < queries; query++)
        for (int64_t level = from; level < to; level++)
            for (int64_t p = 0; p < a->points; p++, at++) {
                lanes->start[at] = (Int)(first_row(a, level) - first_row(a, from));
                for (int d = 0; d < D; d++) lanes->size[d][at] = (Int)a->shapes[level * D + d];
            }
    for (int64_t end = at + WIDTH; at < end; at++) { /* the rest of the last vector is computed, too, and not used */
        lanes->start[at] = 0, lanes->size[0][at] = lanes->size[1][at] = 1, lanes->weight[at] = 0;
        for (int d = 0; d < 2; d++) lanes->rest[d][at] = 0, lanes->cell[d][at] = 0;
        for (int c = 0; c < 4; c++) lanes->dot[c][at] = 0;
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
    for (size_t i = 1; i < sizeof factors / sizeof *factors; i++) sum = sum * x + factors[i];
    return (Vector)((Ints)(sum * (Vector)((power + BIAS) << EXPONENT)) & ~tiny);
}

/* Softmax over one query and head: `count` numbers. */
TARGET INLINE void NAME(softmax)(const Real *logits, Real *weights, int64_t count) {
    Real top = logits[0], sum = 0;
    for (int64_t i = 1; i < count; i++) top = logits[i] > top ? logits[i] : top;
    int64_t i = 0;
    Vector sums = {0};
    for (; i + WIDTH <= count; i += WIDTH) {
        Vector e = NAME(exponential)(NAME(get)(logits + i) - top);
        NAME(put)(weights + i, e), sums += e;
    }
    for (int lane = 0; lane < WIDTH; lane++) sum += sums[lane];
    if (i < count) {
        Real room[WIDTH];
        for (int lane = 0; lane < WIDTH; lane++) room[lane] = i + lane < count ? logits[i + lane] : top;
        NAME(put)(room, NAME(exponential)(NAME(get)(room) - top));
        for (int lane = 0; i + lane < count; lane++) sum += weights[i + lane] = room[lane];
    }
    Real scale = 1 / sum;
    for (i = 0; i < count; i++) weights[i] *= scale;
}

TARGET INLINE void NAME(weights_of)(const Args *a, int64_t row, Real *weights, int64_t count) {
    Real room[MAX_POINTS];
    const Real *logits = NAME(widen)(a->logits, a->logits_type, row * count, count, room);
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

TARGET INLINE Axis NAME(axis)(const Lanes *lanes, int64_t at, int d) {
    Vector rest = NAME(get)(lanes->rest[d] + at), far = NAME(all)(FAR);
    Ints size = NAME(get_ints)(lanes->size[d] + at);
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

/* Rows and shares of all corners of `count` points. */
TARGET INLINE void NAME(locate)(Lanes *lanes, int64_t count, int D) {
    for (int64_t at = 0; at < count; at += WIDTH) {
        Vector weight = NAME(get)(lanes->weight + at);
        Ints start = NAME(get_ints)(lanes->start + at);
        Axis x = NAME(axis)(lanes, at, 0);
        if (D == 1) {
            Ints rows[2] = {start + x.lower_at, start + x.upper_at};
            Vector shares[2] = {x.lower * weight, x.upper * weight};
            for (int c = 0; c < 2; c++)
                memcpy(lanes->row[c] + at, rows + c, BYTES), NAME(put)(lanes->share[c] + at, shares[c]);
        } else {
            Axis y = NAME(axis)(lanes, at, 1);
            Ints width = NAME(get_ints)(lanes->size[0] + at);
            Ints lower = start + y.lower_at * width, upper = start + y.upper_at * width;
            Vector above = y.lower * weight, below = y.upper * weight;
            Ints rows[4] = {lower + x.lower_at, lower + x.upper_at, upper + x.lower_at, upper + x.upper_at};
            Vector shares[4] = {above * x.lower, above * x.upper, below * x.lower, below * x.upper};
            for (int c = 0; c < 4; c++)
                memcpy(lanes->row[c] + at, rows + c, BYTES), NAME(put)(lanes->share[c] + at, shares[c]);
        }
    }
}

/* Weighted sum of all corners of `count` points in `N` vectors of channels; two sums, as one waits for itself. */
TARGET INLINE void NAME(read)(const Lanes *lanes, int64_t at, int64_t count, const Value *rows, int64_t stride,
                              Value *output, int corners, const int N) {
    Vector even[BLOCK * sizeof(Real) / BYTES], odd[BLOCK * sizeof(Real) / BYTES];
    for (int n = 0; n < N; n++) even[n] = odd[n] = (Vector){0};
    for (int64_t i = at; i < at + count; i++)
        for (int c = 0; c < corners; c += 2) {
            const Value *first = rows + lanes->row[c][i] * stride, *second = rows + lanes->row[c + 1][i] * stride;
            for (int n = 0; n < N; n++) {
                even[n] += lanes->share[c][i] * NAME(load)(first + n * WIDTH);
                odd[n] += lanes->share[c + 1][i] * NAME(load)(second + n * WIDTH);
            }
        }
    for (int n = 0; n < N; n++) NAME(store)(output + n * WIDTH, even[n] + odd[n]);
}

TARGET INLINE void NAME(read_row)(const Lanes *lanes, int64_t at, int64_t count, const Value *rows, int64_t stride,
                                  Value *output, int64_t channels, int corners) {
    int64_t c = 0;
    for (; c + BLOCK <= channels; c += BLOCK)
        NAME(read)(lanes, at, count, rows + c, stride, output + c, corners, BLOCK / WIDTH);
    for (; c + WIDTH <= channels; c += WIDTH)
        NAME(read)(lanes, at, count, rows + c, stride, output + c, corners, 1);
    for (; c < channels; c++) {
        Real sum = 0;
        for (int64_t i = at; i < at + count; i++)
            for (int k = 0; k < corners; k++) sum += lanes->share[k][i] * NAME(load_one)(rows + c + lanes->row[k][i] * stride);
        NAME(store_one)(output + c, sum);
    }
}

TARGET INLINE void NAME(look_in)(const Args *a, int64_t slot, int64_t head, int64_t from, int64_t to, int D) {
    Lanes lanes;
    int64_t K = a->levels * a->points, batch = K < BATCH ? BATCH / K : 1, C = a->channels;
    int64_t sample = head / a->heads, h = head % a->heads, stride = a->slots ? C : a->heads * C;
    const Value *rows = a->slots ? (const Value *)a->copies + slot * a->cells * C
                                 : (const Value *)a->value + (sample * a->cells * a->heads + h) * C;
    NAME(prepare)(a, &lanes, batch, 0, a->levels, D);
    for (int64_t first = from; first < to; first += batch) {
        int64_t count = least(batch, to - first);
        NAME(expect)(a, sample, h, first + count, least(first + 2 * count, to), a->output);
        for (int64_t i = 0; i < count; i++) {
            int64_t query = sample * a->queries + first + i;
            NAME(unpack)(a, &lanes, i * K, query, h, 0, a->levels, D);
            NAME(weights_of)(a, query * a->heads + h, lanes.weight + i * K, K);
        }
        NAME(locate)(&lanes, count * K, D);
        for (int64_t i = 0; i < count; i++) {
            int64_t row = (sample * a->queries + first + i) * a->heads + h;
            NAME(read_row)(&lanes, i * K, K, rows, stride, (Value *)a->output + row * C, C, 1 << D);
        }
    }
}

/* Forward, one head's queries from `from` to `to`. */
TARGET static void NAME(look)(const Args *a, int64_t slot, int64_t head, int64_t from, int64_t to) {
    if (a->dims == 1)
        NAME(look_in)(a, slot, head, from, to, 1);
    else
        NAME(look_in)(a, slot, head, from, to, 2);
}

/* Rows of one head, H * C apart, side by side. */
TARGET INLINE void NAME(pack)(const Args *a, int64_t head, int64_t from, int64_t to, Value *copy) {
    int64_t C = a->channels, stride = a->heads * C;
    const Value *source = (const Value *)a->value + ((head / a->heads * a->cells + from) * a->heads + head % a->heads) * C;
    for (int64_t row = from; row < to; row++, source += stride, copy += C) {
        if (C == BLOCK)
            memcpy(copy, source, BLOCK * sizeof(Value));
        else
            memcpy(copy, source, (size_t)C * sizeof(Value));
    }
}

TARGET static void NAME(copy)(const Args *a, int64_t slot, int64_t head, int64_t from, int64_t to) {
    NAME(pack)(a, head, from, to, (Value *)a->copies + (slot * a->cells + from) * a->channels);
}

/* Backward, first pass: attention weights of queries `from` to `to`, of all samples together. */
TARGET static void NAME(weigh)(const Args *a, int64_t from, int64_t to) {
    int64_t K = a->levels * a->points;
    for (int64_t row = from * a->heads; row < to * a->heads; row++)
        NAME(weights_of)(a, row, (Real *)a->weights + row * K, K);
}

/* The sums of four vectors. */
TARGET INLINE void NAME(sums)(const Vector *v, Real *sum) {
#if __has_builtin(__builtin_shufflevector)
    typedef Real Four __attribute__((vector_size(4 * sizeof(Real))));
    Four part[4];
    for (int i = 0; i < 4; i++) {
        Four pieces[BYTES / sizeof(Four) ? BYTES / sizeof(Four) : 1] = {{0}};
        memcpy(pieces, v + i, BYTES);
        part[i] = pieces[0];
        for (int n = 1; n < (int)(BYTES / sizeof(Four)); n++) part[i] += pieces[n];
    }
    Four left = __builtin_shufflevector(part[0], part[1], 0, 4, 1, 5) + __builtin_shufflevector(part[0], part[1], 2, 6, 3, 7);
    Four right = __builtin_shufflevector(part[2], part[3], 0, 4, 1, 5) + __builtin_shufflevector(part[2], part[3], 2, 6, 3, 7);
    left = __builtin_shufflevector(left, right, 0, 1, 4, 5) + __builtin_shufflevector(left, right, 2, 3, 6, 7);
    memcpy(sum, &left, sizeof left);
#else
    for (int i = 0; i < 4; i++) {
        sum[i] = 0;
        for (int lane = 0; lane < WIDTH; lane++) sum[i] += v[i][lane];
    }
#endif
}

/* Four corners at most, of one point or two, in `N` vectors of channels: dot products, and shares of the gradient. */
TARGET INLINE void NAME(write)(Lanes *lanes, int64_t at, int corners, const Value *rows, Real *grads, int64_t stride,
                               const Vector *gradient, int D, const int N) {
    Vector product[4];
    Real dot[4];
    for (int c = 0; c < 4; c++) {
        product[c] = (Vector){0};
        if (c >= corners) continue;
        int64_t row = lanes->row[c & ((1 << D) - 1)][at + (c >> D)] * stride;
        Real share = lanes->share[c & ((1 << D) - 1)][at + (c >> D)];
        for (int n = 0; n < N; n++) {
            product[c] += gradient[n] * NAME(load)(rows + row + n * WIDTH);
            NAME(put)(grads + row + n * WIDTH, NAME(get)(grads + row + n * WIDTH) + share * gradient[n]);
        }
    }
    NAME(sums)(product, dot);
    for (int c = 0; c < corners; c++) lanes->dot[c & ((1 << D) - 1)][at + (c >> D)] += dot[c];
}

TARGET INLINE void NAME(write_block)(Lanes *lanes, int64_t at, int64_t count, const Value *rows, Real *grads, int64_t stride,
                                     const Value *output, int D, const int N) {
    Vector gradient[BLOCK * sizeof(Real) / BYTES];
    for (int n = 0; n < N; n++) gradient[n] = NAME(load)(output + n * WIDTH);
    int64_t i = at, end = at + count, step = D == 1 ? 2 : 1;
    for (; i + step <= end; i += step) NAME(write)(lanes, i, 4, rows, grads, stride, gradient, D, N);
    if (i < end) NAME(write)(lanes, i, 2, rows, grads, stride, gradient, D, N);
}

TARGET INLINE void NAME(write_row)(Lanes *lanes, int64_t at, int64_t count, const Value *rows, Real *grads, int64_t stride,
                                   const Value *output, int64_t channels, int D) {
    int64_t c = 0;
    for (int k = 0; k < 1 << D; k++) memset(lanes->dot[k] + at, 0, (size_t)count * sizeof(Real));
    for (; c + BLOCK <= channels; c += BLOCK)
        NAME(write_block)(lanes, at, count, rows + c, grads + c, stride, output + c, D, BLOCK / WIDTH);
    for (; c + WIDTH <= channels; c += WIDTH)
        NAME(write_block)(lanes, at, count, rows + c, grads + c, stride, output + c, D, 1);
    for (; c < channels; c++) {
        Real gradient = NAME(load_one)(output + c);
        for (int64_t i = at; i < at + count; i++)
            for (int k = 0; k < 1 << D; k++) {
                int64_t row = c + lanes->row[k][i] * stride;
                lanes->dot[k][i] += gradient * NAME(load_one)(rows + row);
                grads[row] += lanes->share[k][i] * gradient;
            }
    }
}

/* From the corners' dot products to the gradients of places (in cells; into `rest`) and weights (into `dot[0]`). */
TARGET INLINE void NAME(differentiate)(Lanes *lanes, int64_t count, int D) {
    for (int64_t at = 0; at < count; at += WIDTH) {
        Vector weight = NAME(get)(lanes->weight + at), dot[4];
        Axis x = NAME(axis)(lanes, at, 0);
        for (int c = 0; c < 1 << D; c++) {
            Ints inside = c % 2 ? x.upper_in : x.lower_in; /* along x: what is outside was not read */
            dot[c] = (Vector)((Ints)NAME(get)(lanes->dot[c] + at) & inside);
        }
        if (D == 1) {
            NAME(put)(lanes->dot[0] + at, x.lower * dot[0] + x.upper * dot[1]);
            NAME(put)(lanes->rest[0] + at, weight * (dot[1] - dot[0]));
        } else {
            Axis y = NAME(axis)(lanes, at, 1);
            for (int c = 0; c < 4; c++) dot[c] = (Vector)((Ints)dot[c] & (c / 2 ? y.upper_in : y.lower_in));
            Vector above = x.lower * dot[0] + x.upper * dot[1], below = x.lower * dot[2] + x.upper * dot[3];
            NAME(put)(lanes->dot[0] + at, y.lower * above + y.upper * below);
            NAME(put)(lanes->rest[0] + at, weight * (y.lower * (dot[1] - dot[0]) + y.upper * (dot[3] - dot[2])));
            NAME(put)(lanes->rest[1] + at, weight * (below - above));
        }
    }
}

TARGET INLINE void NAME(scatter_in)(const Args *a, int64_t thread, int64_t head, int64_t from, int64_t to, int D) {
    Lanes lanes;
    int64_t P = a->points, K = (to - from) * P, batch = K < BATCH ? BATCH / K : 1, C = a->channels;
    int64_t sample = head / a->heads, h = head % a->heads, stride = a->slots ? C : a->heads * C;
    int64_t start = first_row(a, from), cells = first_row(a, to) - start;
    int64_t first_number = ((sample * a->cells + start) * a->heads + h) * C;
    const Value *rows = (const Value *)a->value + first_number;
    Real *grads = (Real *)a->grad_value + first_number;
    if (a->slots) {
        Value *copy = (Value *)a->copies + thread * a->slots * C;
        NAME(pack)(a, head, start, start + cells, copy);
        rows = copy, grads = (Real *)a->grad_copies + thread * a->slots * C;
        memset(grads, 0, (size_t)(cells * C) * sizeof *grads);
    }
    NAME(prepare)(a, &lanes, batch, from, to, D);
    for (int64_t first = 0; first < a->queries; first += batch) {
        int64_t count = least(batch, a->queries - first);
        NAME(expect)(a, sample, h, first + count, least(first + 2 * count, a->queries), a->grad_output);
        for (int64_t i = 0; i < count; i++) {
            int64_t query = sample * a->queries + first + i;
            int64_t at = ((query * a->heads + h) * a->levels + from) * P;
            NAME(unpack)(a, &lanes, i * K, query, h, from, to, D);
            memcpy(lanes.weight + i * K, (Real *)a->weights + at, (size_t)K * sizeof(Real));
        }
        NAME(locate)(&lanes, count * K, D);
        for (int64_t i = 0; i < count; i++) {
            int64_t row = (sample * a->queries + first + i) * a->heads + h;
            NAME(write_row)(&lanes, i * K, K, rows, grads, stride, (const Value *)a->grad_output + row * C, C, D);
        }
        NAME(differentiate)(&lanes, count * K, D);
        for (int64_t i = 0; i < count; i++) {
            int64_t at = (((sample * a->queries + first + i) * a->heads + h) * a->levels + from) * P;
            Real *offsets = (Real *)a->grad_offsets + at * D;
            memcpy((Real *)a->grad_logits + at, lanes.dot[0] + i * K, (size_t)K * sizeof(Real));
            for (int64_t k = 0; k < K; k++)
                for (int d = 0; d < D; d++) offsets[k * D + d] = lanes.rest[d][i * K + k];
        }
    }
    if (a->slots) {
        Value *target = (Value *)a->grad_value + first_number;
        for (int64_t row = 0; row < cells; row++, target += a->heads * C, grads += C) {
            int64_t c = 0;
            for (; c + WIDTH <= C; c += WIDTH) NAME(store)(target + c, NAME(get)(grads + c));
            for (; c < C; c++) NAME(store_one)(target + c, grads[c]);
        }
    }
}

/* Backward, second pass: everything that the points of one head, on levels `from` to `to`, add to. */
TARGET static void NAME(scatter)(const Args *a, int64_t thread, int64_t head, int64_t from, int64_t to) {
    if (a->dims == 1)
        NAME(scatter_in)(a, thread, head, from, to, 1);
    else
        NAME(scatter_in)(a, thread, head, from, to, 2);
}

/* Backward, last pass, queries `from` to `to`: from gradients of weights and places (in cells) to those of the inputs. */
TARGET static void NAME(finish)(const Args *a, int64_t from, int64_t to) {
    int64_t L = a->levels, P = a->points, D = a->dims, K = L * P, A = a->kind == BOXES ? 2 * D : D;
    for (int64_t query = from; query < to; query++) {
        const double *reference = a->kind == PLAIN ? NULL : a->references + query * L * A;
        double *grad_reference = a->grad_references ? a->grad_references + query * L * A : NULL;
        if (grad_reference) memset(grad_reference, 0, (size_t)(L * A) * sizeof(double));
        for (int64_t head = 0; head < a->heads; head++) {
            int64_t row = (query * a->heads + head) * K;
            const Real *weights = (const Real *)a->weights + row;
            Real *logits = (Real *)a->grad_logits + row, *offsets = (Real *)a->grad_offsets + row * D, mean = 0;
            if (a->kind != PLAIN) {
                for (int64_t k = 0; k < K; k++) mean += weights[k] * logits[k];
                for (int64_t k = 0; k < K; k++) logits[k] = weights[k] * (logits[k] - mean);
            }
            if (a->kind == POINTS && !grad_reference) continue; /* offsets are in cells */
            Real room[2];
            for (int64_t level = 0; level < L; level++)
                for (int64_t d = 0; d < D; d++) {
                    double size = (double)a->shapes[level * D + d], half = size * 0.5 / (double)P, center = 0, extent = 0;
                    Real scale = a->kind == BOXES ? (Real)(reference[level * A + D + d] * half)
                                                  : a->kind == PLAIN ? (Real)size : 1;
                    for (int64_t p = 0; p < P; p++) {
                        int64_t at = (level * P + p) * D + d;
                        if (grad_reference) center += offsets[at];
                        if (grad_reference && A > D)
                            extent += offsets[at] * *NAME(widen)(a->offsets, a->offsets_type, row * D + at, 1, room);
                        offsets[at] *= scale;
                    }
                    if (grad_reference) grad_reference[level * A + d] += center * size;
                    if (grad_reference && A > D) grad_reference[level * A + D + d] += extent * half;
                }
        }
    }
}

static const Functions NAME(functions) = {NAME(copy), NAME(look), NAME(weigh), NAME(scatter), NAME(finish)};

#undef Real
#undef Int
#undef Value
#undef Vector
#undef Ints
#undef Lanes
#undef Axis
#undef WIDTH
#undef BLOCK
#undef BATCH
#undef ROOM
#undef FAR
#undef EXPONENT
#undef BIAS
