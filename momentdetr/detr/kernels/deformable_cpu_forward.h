/* Forward, a part of deformable_cpu.h: a small batch of queries is located, then its rows are read. */

/* Ask the second-level cache for the rows of `count` points, where they are read few times and from far apart. */
TARGET INLINE void NAME(expect_rows)(const Lanes *lanes, int64_t at, int64_t count, const Value *rows, int64_t stride,
                                     int64_t channels, int corners) {
    for (int64_t i = at; i < at + count; i++)
        for (int c = 0; c < corners; c++)
            for (int64_t byte = 0; byte < channels * (int64_t)sizeof(Value); byte += 64)
                __builtin_prefetch((const char *)(rows + lanes->row[c][i] * stride) + byte, 0, 2);
}

/* Weighted sum of all corners of `count` points in `N` vectors of channels: several sums, as each waits for itself. */
TARGET INLINE void NAME(read)(const Lanes *lanes, int64_t at, int64_t count, const Value *rows, int64_t stride,
                              Value *output, int corners, const int N) {
    Vector sums[4][BLOCK * sizeof(Real) / BYTES];
    const int several = N > 2 ? 2 : 4; /* as many as there are registers for */
    UNROLL for (int s = 0; s < several; s++)
        UNROLL for (int n = 0; n < N; n++) sums[s][n] = (Vector){0};
    int64_t i = at, end = at + count;
    for (; i + several <= end; i += several)
        UNROLL for (int s = 0; s < several; s++)
            UNROLL for (int c = 0; c < corners; c++) {
                const Value *row = rows + lanes->row[c][i + s] * stride;
                Vector *sum = sums[(s * corners + c) % several];
                UNROLL for (int n = 0; n < N; n++) sum[n] += lanes->share[c][i + s] * NAME(load)(row + n * WIDTH);
            }
    for (; i < end; i++)
        UNROLL for (int c = 0; c < corners; c++)
            UNROLL for (int n = 0; n < N; n++)
                sums[0][n] += lanes->share[c][i] * NAME(load)(rows + lanes->row[c][i] * stride + n * WIDTH);
    UNROLL for (int n = 0; n < N; n++) {
        Vector sum = sums[0][n] + sums[1][n];
        NAME(store)(output + n * WIDTH, several == 4 ? sum + (sums[2][n] + sums[3][n]) : sum);
    }
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
    int far = !a->slots && a->cells * a->heads * a->channels * (int64_t)sizeof(Value) > NEAR;
    int64_t K = a->levels * a->points, wide = WHOLE(K), batch = wide < BATCH ? BATCH / wide : 1, C = a->channels;
    int64_t sample = head / a->heads, h = head % a->heads, stride = a->slots ? C : a->heads * C;
    const Value *rows = a->slots ? (const Value *)a->copies + slot * a->cells * C
                                 : (const Value *)a->value + (sample * a->cells * a->heads + h) * C;
    NAME(prepare)(a, &lanes, 0, a->levels, D);
    for (int64_t first = from; first < to; first += batch) {
        int64_t count = least(batch, to - first);
        if (a->slots) NAME(expect)(a, sample, h, first + count, least(first + 2 * count, to), a->output);
        for (int64_t i = 0; i < count; i++) {
            int64_t query = sample * a->queries + first + i;
            NAME(unpack)(a, &lanes, i * wide, query, h, 0, a->levels, D);
            NAME(weights_of)(a, query * a->heads + h, lanes.weight + i * wide, K);
            NAME(locate)(&lanes, i * wide, K, D);
            if (far) NAME(expect_rows)(&lanes, i * wide, K, rows, stride, C, 1 << D);
        }
        for (int64_t i = 0; i < count; i++) {
            int64_t row = (sample * a->queries + first + i) * a->heads + h;
            NAME(read_row)(&lanes, i * wide, K, rows, stride, (Value *)a->output + row * C, C, 1 << D);
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
