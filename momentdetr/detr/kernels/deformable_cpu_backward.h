/* Backward, a part of deformable_cpu.h: gradients of rows, places and weights, and from those the ones of inputs. */

/* Backward, first pass: attention weights of queries `from` to `to`, of all samples together. */
TARGET static void NAME(weigh)(const Args *a, int64_t from, int64_t to) {
    int64_t K = a->levels * a->points;
    Real room[ROOM];
    for (int64_t row = from * a->heads; row < to * a->heads; row++) {
        Real *weights = (Real *)a->weights + row * K;
        NAME(weights_of)(a, row, K % WIDTH ? room : weights, K);
        if (K % WIDTH) memcpy(weights, room, (size_t)K * sizeof(Real));
    }
}

/* The sums of four vectors. */
TARGET INLINE void NAME(sums)(const Vector *v, Real *sum) {
#if __has_builtin(__builtin_shufflevector)
    typedef Real Four __attribute__((vector_size(4 * sizeof(Real))));
    Four part[4];
    UNROLL for (int i = 0; i < 4; i++) {
        Four pieces[BYTES / sizeof(Four) ? BYTES / sizeof(Four) : 1] = {{0}};
        memcpy(pieces, v + i, BYTES);
        part[i] = pieces[0];
        UNROLL for (int n = 1; n < (int)(BYTES / sizeof(Four)); n++) part[i] += pieces[n];
    }
    Four left = __builtin_shufflevector(part[0], part[1], 0, 4, 1, 5) + __builtin_shufflevector(part[0], part[1], 2, 6, 3, 7);
    Four right = __builtin_shufflevector(part[2], part[3], 0, 4, 1, 5) + __builtin_shufflevector(part[2], part[3], 2, 6, 3, 7);
    left = __builtin_shufflevector(left, right, 0, 1, 4, 5) + __builtin_shufflevector(left, right, 2, 3, 6, 7);
    memcpy(sum, &left, sizeof left);
#else
    UNROLL for (int i = 0; i < 4; i++) {
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
    UNROLL for (int c = 0; c < 4; c++) {
        product[c] = (Vector){0};
        if (c >= corners) continue;
        int64_t row = lanes->row[c & ((1 << D) - 1)][at + (c >> D)] * stride;
        Real share = lanes->share[c & ((1 << D) - 1)][at + (c >> D)];
        UNROLL for (int n = 0; n < N; n++) {
            product[c] += gradient[n] * NAME(load)(rows + row + n * WIDTH);
            NAME(put)(grads + row + n * WIDTH, NAME(get)(grads + row + n * WIDTH) + share * gradient[n]);
        }
    }
    NAME(sums)(product, dot);
    UNROLL for (int c = 0; c < corners; c++) lanes->dot[c & ((1 << D) - 1)][at + (c >> D)] += dot[c];
}

TARGET INLINE void NAME(write_block)(Lanes *lanes, int64_t at, int64_t count, const Value *rows, Real *grads, int64_t stride,
                                     const Value *output, int D, const int N) {
    Vector gradient[BLOCK * sizeof(Real) / BYTES];
    UNROLL for (int n = 0; n < N; n++) gradient[n] = NAME(load)(output + n * WIDTH);
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

/* From a query's corners' dot products to the gradients of places (in cells; into `rest`) and weights (into `dot[0]`). */
TARGET INLINE void NAME(differentiate)(Lanes *lanes, int64_t at, int64_t count, int D) {
    for (int64_t k = 0; k < count; k += WIDTH, at += WIDTH) {
        Vector weight = NAME(get)(lanes->weight + at), dot[4];
        Axis x = NAME(axis)(lanes, at, k, 0);
        for (int c = 0; c < 1 << D; c++) {
            Ints inside = c % 2 ? x.upper_in : x.lower_in; /* along x: what is outside was not read */
            dot[c] = (Vector)((Ints)NAME(get)(lanes->dot[c] + at) & inside);
        }
        if (D == 1) {
            NAME(put)(lanes->dot[0] + at, x.lower * dot[0] + x.upper * dot[1]);
            NAME(put)(lanes->rest[0] + at, weight * (dot[1] - dot[0]));
        } else {
            Axis y = NAME(axis)(lanes, at, k, 1);
            for (int c = 0; c < 4; c++) dot[c] = (Vector)((Ints)dot[c] & (c / 2 ? y.upper_in : y.lower_in));
            Vector above = x.lower * dot[0] + x.upper * dot[1], below = x.lower * dot[2] + x.upper * dot[3];
            NAME(put)(lanes->dot[0] + at, y.lower * above + y.upper * below);
            NAME(put)(lanes->rest[0] + at, weight * (y.lower * (dot[1] - dot[0]) + y.upper * (dot[3] - dot[2])));
            NAME(put)(lanes->rest[1] + at, weight * (below - above));
        }
    }
}

/* The gradients of a query's `count` places, axis by axis, as a tensor has them. */
TARGET INLINE void NAME(join)(const Lanes *lanes, int64_t at, int64_t count, Real *places, int D) {
    if (D == 1) {
        memcpy(places, lanes->rest[0] + at, (size_t)count * sizeof(Real));
        return;
    }
    int64_t k = 0;
    for (; k + WIDTH <= count; k += WIDTH) {
        Vector x = NAME(get)(lanes->rest[0] + at + k), y = NAME(get)(lanes->rest[1] + at + k);
        Ints lane = NAME(count_lanes)(0, 1), turn = lane / 2 + lane % 2 * WIDTH; /* x and y in turn */
        NAME(put)(places + k * 2, NAME(pick)(x, y, turn));
        NAME(put)(places + k * 2 + WIDTH, NAME(pick)(x, y, turn + WIDTH / 2));
    }
    for (; k < count; k++)
        for (int d = 0; d < 2; d++) places[k * 2 + d] = lanes->rest[d][at + k];
}

/* From gradients of weights and places (in cells) of a query and head to those of logits and offsets. */
TARGET INLINE void NAME(finish_head)(const Args *a, int64_t query, const Real *weights, Real *logits, Real *offsets) {
    int64_t L = a->levels, P = a->points, D = a->dims, K = L * P;
    if (a->kind != PLAIN) {
        Real mean = 0;
        Vector means = {0};
        int64_t k = 0, whole = K - K % WIDTH;
        for (; k < whole; k += WIDTH) means += NAME(get)(weights + k) * NAME(get)(logits + k);
        for (int lane = 0; lane < WIDTH; lane++) mean += means[lane];
        for (; k < K; k++) mean += weights[k] * logits[k];
        for (k = 0; k < whole; k += WIDTH)
            NAME(put)(logits + k, NAME(get)(weights + k) * (NAME(get)(logits + k) - mean));
        for (; k < K; k++) logits[k] = weights[k] * (logits[k] - mean);
    }
    if (a->kind == POINTS) return; /* offsets are in cells */
    for (int64_t level = 0; level < L; level++)
        for (int64_t d = 0; d < D; d++) {
            double size = (double)a->shapes[level * D + d];
            if (a->kind == BOXES) size *= a->references[(query * L + level) * 2 * D + D + d] * 0.5 / (double)P;
            for (int64_t p = 0; p < P; p++) offsets[(level * P + p) * D + d] *= (Real)size;
        }
}

TARGET INLINE void NAME(scatter_in)(const Args *a, int64_t thread, int64_t head, int64_t from, int64_t to, int D) {
    Lanes lanes;
    int far = !a->slots && a->cells * a->heads * a->channels * (int64_t)sizeof(Value) > NEAR;
    int64_t P = a->points, K = (to - from) * P, wide = WHOLE(K), batch = wide < BATCH ? BATCH / wide : 1, C = a->channels;
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
    NAME(prepare)(a, &lanes, from, to, D);
    for (int64_t first = 0; first < a->queries; first += batch) {
        int64_t count = least(batch, a->queries - first);
        if (a->slots) NAME(expect)(a, sample, h, first + count, least(first + 2 * count, a->queries), a->grad_output);
        for (int64_t i = 0; i < count; i++) {
            int64_t query = sample * a->queries + first + i;
            int64_t at = ((query * a->heads + h) * a->levels + from) * P;
            NAME(unpack)(a, &lanes, i * wide, query, h, from, to, D);
            if (a->weights)
                memcpy(lanes.weight + i * wide, (Real *)a->weights + at, (size_t)K * sizeof(Real));
            else
                NAME(weights_of)(a, query * a->heads + h, lanes.weight + i * wide, K);
            NAME(locate)(&lanes, i * wide, K, D);
            if (far) NAME(expect_rows)(&lanes, i * wide, K, rows, stride, C, 1 << D);
        }
        for (int64_t i = 0; i < count; i++) {
            int64_t row = (sample * a->queries + first + i) * a->heads + h;
            NAME(write_row)(&lanes, i * wide, K, rows, grads, stride, (const Value *)a->grad_output + row * C, C, D);
        }
        for (int64_t i = 0; i < count; i++) {
            int64_t query = sample * a->queries + first + i, at = ((query * a->heads + h) * a->levels + from) * P;
            Real *logits = (Real *)a->grad_logits + at, *offsets = (Real *)a->grad_offsets + at * D;
            NAME(differentiate)(&lanes, i * wide, K, D);
            memcpy(logits, lanes.dot[0] + i * wide, (size_t)K * sizeof(Real));
            NAME(join)(&lanes, i * wide, K, offsets, D);
            if (!a->weights) NAME(finish_head)(a, query, lanes.weight + i * wide, logits, offsets);
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

/* Backward, last pass, queries `from` to `to`: what is left to do where tasks are single levels, or references want
 * gradients, which are sums over heads. */
TARGET static void NAME(finish)(const Args *a, int64_t from, int64_t to) {
    int64_t L = a->levels, P = a->points, D = a->dims, K = L * P, A = a->kind == BOXES ? 2 * D : D;
    for (int64_t query = from; query < to; query++) {
        double *grad_reference = a->grad_references ? a->grad_references + query * L * A : NULL;
        if (grad_reference) memset(grad_reference, 0, (size_t)(L * A) * sizeof(double));
        for (int64_t head = 0; head < a->heads; head++) {
            int64_t row = (query * a->heads + head) * K;
            Real *offsets = (Real *)a->grad_offsets + row * D, room[WIDTH];
            for (int64_t level = 0; level < L && grad_reference; level++)
                for (int64_t d = 0; d < D; d++) {
                    double size = (double)a->shapes[level * D + d], center = 0, extent = 0;
                    for (int64_t p = 0; p < P; p++) {
                        int64_t at = (level * P + p) * D + d;
                        center += offsets[at];
                        if (A > D)
                            extent += offsets[at] * *NAME(widen)(a->offsets, a->offsets_type, row * D + at, 1, 0, room);
                    }
                    grad_reference[level * A + d] += center * size;
                    if (A > D) grad_reference[level * A + D + d] += extent * size * 0.5 / (double)P;
                }
            NAME(finish_head)(a, query, (const Real *)a->weights + row, (Real *)a->grad_logits + row, offsets);
        }
    }
}
