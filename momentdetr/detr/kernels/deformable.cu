// Multi-scale deformable attention, forward and backward, for levels of one and two dimensions.
//
// One source without includes, so that NVRTC compiles it on a machine that has a driver and nothing else, and nvcc
// wherever it is installed. One compilation makes one instance, specialised by macros:
//
//   DIM        1 or 2                         LEVELS, POINTS  L and P
//   CHANNELS   C of one head                  THREADS         of a block, a multiple of 32
//   VALUE      0 float, 1 bfloat16, 2 half    WEIGHT          the same for raw offsets and logits
//   WIDE       1: references (plain sampling: locations) are double, 0: float
//   MODE       0 plain sampling: offsets are locations (fractions of a level), logits are weights as they are
//              1 around points: (B, Q, L, D)    2 around boxes: (B, Q, L, 2D)
//   BACKWARD   1: the backward kernel, 0: the forward kernel
//   RESIDENT   blocks that a multiprocessor is to hold at once: bounds the registers
//   FIXED      1: grad_value is summed in 64-bit fixed point, the same bits in any order; 0: in float
//
// A group of LANES threads serves one query and head; each lane owns VECTOR neighbouring channels (16 bytes of the value).
// Points are taken LANES at a time: first every lane works out the corners of one point (softmax, place, bilinear
// shares) and leaves them in shared memory, then all lanes walk through the points together, each on its channels. So no
// coordinate is worked out twice, and every read of the value is one 16-byte load of each of LANES neighbours.
// Positions, shares and sums are float whatever the types of the tensors.

#if VALUE == 0
typedef float value_t;
#else
typedef unsigned short value_t;
#endif
#if WEIGHT == 0
typedef float weight_t;
#else
typedef unsigned short weight_t;
#endif
#if WIDE
typedef double place_t;
#else
typedef float place_t;
#endif
#if MODE == 0
typedef place_t offset_t;      // locations
typedef float offset_grad_t;
#else
typedef weight_t offset_t;
typedef weight_t offset_grad_t;
#endif
#if FIXED
typedef long long sum_t;
#else
typedef float sum_t;
#endif

constexpr int CORNERS = 1 << DIM;
constexpr int SAMPLES = LEVELS * POINTS;  // of a query and head
constexpr int LARGEST = 16 / sizeof(value_t);
constexpr int VECTOR = CHANNELS % LARGEST == 0         ? LARGEST
                       : CHANNELS % (LARGEST / 2) == 0 ? LARGEST / 2
                       : CHANNELS % 2 == 0             ? 2
                                                       : 1;
constexpr int PARTS = CHANNELS / VECTOR;
constexpr int LANES = PARTS > 16 ? 32 : PARTS > 8 ? 16 : PARTS > 4 ? 8 : PARTS > 2 ? 4 : PARTS > 1 ? 2 : 1;
constexpr int TURNS = (PARTS + LANES - 1) / LANES;  // vectors a lane
constexpr int GROUPS = THREADS / LANES;
constexpr unsigned WARP = 0xffffffffu;

struct Level {
    int start;      // its first token
    int size[DIM];  // in natural order, x before y
};

struct Sizes {
    int num_tokens, num_queries, num_heads, num_tiles;  // tiles of GROUPS queries
    Level levels[LEVELS];
};

// One point as all lanes of its group see it. Rows outside are -1: they are neither read nor written.
struct __align__(16) Corners {
    int row[CORNERS];
    float share[CORNERS];  // attention weight times interpolation weight
};

// One point as the lane that works it out sees it.
struct Point {
    int row[CORNERS];
    float above[DIM];  // from the lower corner to the upper, in [0, 1)
    float scale[DIM];  // cells that one unit of an offset moves
    float weight;
};

// ---- what the hardware does in one instruction; a CPU emulation brings its own

#ifndef EMULATED
__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ __forceinline__ unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Relaxed additions without a result; Hopper and later add 16 bytes at once.
template <int COUNT>
__device__ __forceinline__ void add(float* address, const float* x) {
#if __CUDA_ARCH__ >= 900
    constexpr int WIDTH = COUNT % 4 == 0 ? 4 : COUNT % 2 == 0 ? 2 : 1;
#else
    constexpr int WIDTH = 1;
#endif
#pragma unroll
    for (int i = 0; i < COUNT; i += WIDTH) {
        if constexpr (WIDTH == 4)
            asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address + i), "f"(x[i]),
                         "f"(x[i + 1]), "f"(x[i + 2]), "f"(x[i + 3])
                         : "memory");
        else if constexpr (WIDTH == 2)
            asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(address + i), "f"(x[i]),
                         "f"(x[i + 1])
                         : "memory");
        else
            asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(address + i), "f"(x[i]) : "memory");
    }
}
#endif

// ---- types

__device__ __forceinline__ float bfloat_to_float(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

__device__ __forceinline__ unsigned short float_to_bfloat(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fc0;
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
}

template <int KIND, typename T>
__device__ __forceinline__ float to_float(T x) {
    if constexpr (KIND == 0) return x;
    else if constexpr (KIND == 1) return bfloat_to_float(x);
    else return half_to_float(x);
}

template <int KIND, typename T>
__device__ __forceinline__ T from_float(float x) {
    if constexpr (KIND == 0) return x;
    else if constexpr (KIND == 1) return float_to_bfloat(x);
    else return float_to_half(x);
}

template <int BYTES> struct Pack;
template <> struct Pack<16> { typedef uint4 type; };
template <> struct Pack<8> { typedef uint2 type; };
template <> struct Pack<4> { typedef unsigned type; };
template <> struct Pack<2> { typedef unsigned short type; };

union Bundle {
    typename Pack<VECTOR * sizeof(value_t)>::type whole;
    value_t part[VECTOR];
};

__device__ __forceinline__ Bundle read(const value_t* address) {
    Bundle bundle;
    bundle.whole = __ldg((const typename Pack<VECTOR * sizeof(value_t)>::type*)address);
    return bundle;
}

__device__ __forceinline__ float component(const Bundle& bundle, int i) { return to_float<VALUE>(bundle.part[i]); }

// ---- sums over the lanes of a group

__device__ __forceinline__ float group_sum(float x) {
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) x += __shfl_xor_sync(WARP, x, step);
    return x;
}

__device__ __forceinline__ float group_max(float x) {
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) x = fmaxf(x, __shfl_xor_sync(WARP, x, step));
    return x;
}

// ---- one point

// place * size to a whole cell and what lies between that cell's centre and the place, without rounding the product.
// False if the cell is too far away to be counted, or not a number.
__device__ __forceinline__ bool split(place_t place, int size, int& cell, float& rest) {
#if WIDE
    const double cells = place * size, whole = floor(cells);
    const bool countable = fabs(whole) < 1e9;
    rest = (float)(cells - whole - 0.5);
#else
    const float whole = floorf(place * (float)size);
    const bool countable = fabsf(whole) < 1e9f;
    rest = fmaf(place, (float)size, -whole) - 0.5f;  // the product is exact here, whatever the compiler contracts
#endif
    cell = countable ? (int)whole : 0;
    return countable;
}

struct Softmax {
    float largest, scale;  // weight = exp(logit - largest) * scale
};

__device__ __forceinline__ Softmax softmax(const weight_t* logits, int lane) {
#if MODE == 0
    return {0.0f, 1.0f};
#else
    float largest = -3.402823466e38f, total = 0.0f;
#pragma unroll 2
    for (int i = lane; i < SAMPLES; i += LANES) largest = fmaxf(largest, to_float<WEIGHT>(__ldg(logits + i)));
    largest = group_max(largest);
#pragma unroll 2
    for (int i = lane; i < SAMPLES; i += LANES) total += expf(to_float<WEIGHT>(__ldg(logits + i)) - largest);
    return {largest, 1.0f / group_sum(total)};
#endif
}

__device__ __forceinline__ float weigh(const weight_t* logits, int sample, Softmax over) {
    const float logit = to_float<WEIGHT>(__ldg(logits + sample));
    return MODE == 0 ? logit : expf(logit - over.largest) * over.scale;
}

// The corners of one point. `references` and `offsets` are those of the query (and head).
__device__ __forceinline__ Point locate(const Level* levels, const place_t* references, const offset_t* offsets, int sample) {
    Point point;
    const int level = sample / POINTS;
    int cell[DIM], size[DIM];
    bool there = true;
#pragma unroll
    for (int d = 0; d < DIM; ++d) {
        float rest;
        size[d] = levels[level].size[d];
#if MODE == 0
        there = split(__ldg(offsets + sample * DIM + d), size[d], cell[d], rest) && there;
        point.scale[d] = (float)size[d];
#elif MODE == 1
        there = split(__ldg(references + level * DIM + d), size[d], cell[d], rest) && there;
        point.scale[d] = 1.0f;
        rest += to_float<WEIGHT>(__ldg(offsets + sample * DIM + d));
#else
        there = split(__ldg(references + level * 2 * DIM + d), size[d], cell[d], rest) && there;
        const place_t extent = __ldg(references + (level * 2 + 1) * DIM + d);
        point.scale[d] = (float)(extent * size[d] * (place_t)0.5 / POINTS);
        rest += to_float<WEIGHT>(__ldg(offsets + sample * DIM + d)) * point.scale[d];
#endif
        const float step = floorf(rest);
        const bool countable = fabsf(step) < 1e9f;  // false for NaN too
        there = there && countable;
        point.above[d] = rest - step;
        cell[d] += countable ? (int)step : 0;
    }
#pragma unroll
    for (int d = 0; d < DIM; ++d) point.above[d] = there ? point.above[d] : 0.0f;
#pragma unroll
    for (int corner = 0; corner < CORNERS; ++corner) {
        bool inside = there;
        unsigned index = 0;
#pragma unroll
        for (int d = DIM - 1; d >= 0; --d) {
            const unsigned at = (unsigned)(cell[d] + (corner >> d & 1));  // huge when negative
            inside = inside && at < (unsigned)size[d];
            index = index * (unsigned)size[d] + at;  // wraps only where it is not inside, and is not used then
        }
        point.row[corner] = inside ? levels[level].start + (int)index : -1;
    }
    return point;
}

__device__ __forceinline__ float interpolation(const Point& point, int corner, int without = -1) {
    float product = 1.0f;
#pragma unroll
    for (int d = 0; d < DIM; ++d)
        if (d != without) product *= (corner >> d & 1) ? point.above[d] : 1.0f - point.above[d];
    return product;
}

// ---- where a group stands

struct Group {
    int lane, group, query, head;
    long long batch, item;  // item: index of (batch, query, head)
    bool active;            // the last tile may hold fewer queries: its idle groups repeat the last one and write nothing
};

__device__ __forceinline__ Group whereabouts(const Sizes& sizes) {
    Group at;
    at.lane = threadIdx.x % LANES;
    at.group = threadIdx.x / LANES;
    unsigned block = blockIdx.x;  // heads change fastest: offsets and outputs of neighbours lie side by side
    at.head = block % sizes.num_heads;
    block /= sizes.num_heads;
    at.query = (int)(block % sizes.num_tiles) * GROUPS + at.group;
    at.batch = block / sizes.num_tiles;
    at.active = at.query < sizes.num_queries;
    if (!at.active) at.query = sizes.num_queries - 1;
    at.item = (at.batch * sizes.num_queries + at.query) * sizes.num_heads + at.head;
    return at;
}

__device__ __forceinline__ const place_t* references_of(const place_t* references, const Sizes& sizes, const Group& at) {
    return references + (at.batch * sizes.num_queries + at.query) * (LEVELS * DIM * (MODE == 2 ? 2 : 1));
}

__device__ __forceinline__ void copy_levels(Level* levels, const Sizes& sizes) {
#pragma unroll
    for (int i = 0; i < LEVELS; ++i)  // by constant indices: parameters that are indexed move to local memory
        if (threadIdx.x == i % THREADS) levels[i] = sizes.levels[i];
    __syncthreads();
}

// ---- kernels

#if !BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
deformable_forward(const value_t* value, const place_t* references, const offset_t* offsets, const weight_t* logits,
                   value_t* output, const Sizes sizes) {
    __shared__ Level levels[LEVELS];
    __shared__ Corners corners[GROUPS][LANES + 1];  // one more: groups of a warp read from different banks
    copy_levels(levels, sizes);
    const Group at = whereabouts(sizes);
    const long long stride = (long long)sizes.num_heads * CHANNELS;
    value += at.batch * sizes.num_tokens * stride + at.head * CHANNELS;
    references = references_of(references, sizes, at);
    offsets += at.item * SAMPLES * DIM;
    logits += at.item * SAMPLES;

    const Softmax over = softmax(logits, at.lane);
    float total[TURNS][VECTOR] = {};
    float poison = 0.0f;  // NaN if a weight is not finite, also of a point outside

    for (int first = 0; first < SAMPLES; first += LANES) {
        if (first + at.lane < SAMPLES) {
            const Point point = locate(levels, references, offsets, first + at.lane);
            const float weight = weigh(logits, first + at.lane, over);
            Corners& mine = corners[at.group][at.lane];
            poison += weight * 0.0f;
#pragma unroll
            for (int corner = 0; corner < CORNERS; ++corner) {
                mine.row[corner] = point.row[corner];
                mine.share[corner] = weight * interpolation(point, corner);
            }
        }
        __syncwarp();
        const int count = min(LANES, SAMPLES - first);
#pragma unroll 2
        for (int i = 0; i < count; ++i) {
            const Corners point = corners[at.group][i];
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) {
                const int channel = (turn * LANES + at.lane) * VECTOR;
                Bundle found[CORNERS];
#pragma unroll
                for (int corner = 0; corner < CORNERS; ++corner) {
                    found[corner].whole = {};
                    if (point.row[corner] >= 0 && channel < CHANNELS)
                        found[corner] = read(value + point.row[corner] * stride + channel);
                }
#pragma unroll
                for (int corner = 0; corner < CORNERS; ++corner)
#pragma unroll
                    for (int c = 0; c < VECTOR; ++c)
                        total[turn][c] = fmaf(point.share[corner], component(found[corner], c), total[turn][c]);
            }
        }
        __syncwarp();
    }

    poison = group_sum(poison);
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int channel = (turn * LANES + at.lane) * VECTOR;
        Bundle result;
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) result.part[c] = from_float<VALUE, value_t>(total[turn][c] + poison);
        if (at.active && channel < CHANNELS) *(decltype(result.whole)*)(output + at.item * CHANNELS + channel) = result.whole;
    }
}

#else
__device__ __forceinline__ void accumulate(sum_t* address, const float* x, const double* fixed_scale) {
#if FIXED
    for (int c = 0; c < VECTOR; ++c)
        atomicAdd((unsigned long long*)address + c, (unsigned long long)__double2ll_rn((double)x[c] * *fixed_scale));
#else
    add<VECTOR>(address, x);
#endif
}

// What the lanes of a group do together for one point: scatter grad_value, and multiply what was read by grad_output.
// The products are summed over lanes while points are paired (SPAN = 2, 4, ..): a lane ends with those of its own point.
struct Walk {
    const Corners* corners;
    const value_t* value;
    sum_t* grad_value;
    const double* fixed_scale;
    float (*grad)[VECTOR];  // grad_output of this lane's channels
    long long stride;
    int lane, count;
};

template <int SPAN>
__device__ __forceinline__ void products(const Walk& walk, int first, float (&product)[CORNERS]) {
    if constexpr (SPAN == 1) {
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) product[corner] = 0.0f;
        if (first >= walk.count) return;
        const Corners point = walk.corners[first];
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const int channel = (turn * LANES + walk.lane) * VECTOR;
#pragma unroll
            for (int corner = 0; corner < CORNERS; ++corner) {
                if (point.row[corner] < 0 || channel >= CHANNELS) continue;
                const long long place = point.row[corner] * walk.stride + channel;
                const Bundle found = read(walk.value + place);
                float part[VECTOR];
#pragma unroll
                for (int c = 0; c < VECTOR; ++c) {
                    product[corner] = fmaf(walk.grad[turn][c], component(found, c), product[corner]);
                    part[c] = point.share[corner] * walk.grad[turn][c];
                }
                accumulate(walk.grad_value + place, part, walk.fixed_scale);
            }
        }
    } else {
        float low[CORNERS], high[CORNERS];
        products<SPAN / 2>(walk, first, low);
        products<SPAN / 2>(walk, first + SPAN / 2, high);
        const bool upper = walk.lane & (SPAN / 2);
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            const float other = __shfl_xor_sync(WARP, upper ? low[corner] : high[corner], SPAN / 2);
            product[corner] = (upper ? high[corner] : low[corner]) + other;
        }
    }
}

// grad_value (B, S, H, C) must be zero; grad_cells (the gradient of positions in cells, as offsets lie) may be null.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
deformable_backward(const value_t* grad_output, const value_t* value, const place_t* references,
                    const offset_t* offsets, const weight_t* logits, sum_t* grad_value, offset_grad_t* grad_offsets,
                    weight_t* grad_logits, float* grad_cells, const double* fixed_scale, const Sizes sizes) {
    __shared__ Level levels[LEVELS];
    __shared__ Corners corners[GROUPS][LANES + 1];
    __shared__ float grad_weights[GROUPS][SAMPLES];  // each lane reads back only what it wrote
    copy_levels(levels, sizes);
    const Group at = whereabouts(sizes);
    const long long stride = (long long)sizes.num_heads * CHANNELS;
    const long long base = at.batch * sizes.num_tokens * stride + at.head * CHANNELS;
    const long long samples = at.item * SAMPLES;
    references = references_of(references, sizes, at);
    offsets += samples * DIM;
    logits += samples;

    float grad[TURNS][VECTOR] = {};
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int channel = (turn * LANES + at.lane) * VECTOR;
        if (channel >= CHANNELS) continue;
        const Bundle found = read(grad_output + at.item * CHANNELS + channel);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) grad[turn][c] = component(found, c);
    }

    const Softmax over = softmax(logits, at.lane);
    float weighted = 0.0f;  // sum over points of weight * grad_weight
    for (int first = 0; first < SAMPLES; first += LANES) {
        const int sample = first + at.lane;
        Point point = {};
        if (sample < SAMPLES) {
            point = locate(levels, references, offsets, sample);
            point.weight = weigh(logits, sample, over);
            Corners& mine = corners[at.group][at.lane];
#pragma unroll
            for (int corner = 0; corner < CORNERS; ++corner) {
                mine.row[corner] = at.active ? point.row[corner] : -1;
                mine.share[corner] = point.weight * interpolation(point, corner);
            }
        }
        __syncwarp();
        const Walk walk = {corners[at.group], value + base, grad_value + base,           fixed_scale,
                           grad,              stride,       at.lane,           min(LANES, SAMPLES - first)};
        float product[CORNERS];
        products<LANES>(walk, 0, product);
        __syncwarp();
        if (sample >= SAMPLES) continue;  // rejoins at the next __syncwarp

        float grad_weight = 0.0f;
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner)
            grad_weight = fmaf(interpolation(point, corner), product[corner], grad_weight);
        grad_weights[at.group][sample] = grad_weight;
        weighted = fmaf(point.weight, grad_weight, weighted);
#pragma unroll
        for (int d = 0; d < DIM; ++d) {
            float slope = 0.0f;
#pragma unroll
            for (int corner = 0; corner < CORNERS; ++corner) {
                const float part = interpolation(point, corner, d) * product[corner];
                slope += (corner >> d & 1) ? part : -part;
            }
            slope *= point.weight;
            if (!at.active) continue;
            const long long place = (samples + sample) * DIM + d;
            grad_offsets[place] = from_float<MODE == 0 ? 0 : WEIGHT, offset_grad_t>(slope * point.scale[d]);
            if (grad_cells) grad_cells[place] = slope;
        }
    }

    weighted = group_sum(weighted);
    for (int sample = at.lane; sample < SAMPLES; sample += LANES) {
        float result = grad_weights[at.group][sample];
        if (MODE != 0) result = weigh(logits, sample, over) * (result - weighted);
        if (at.active) grad_logits[samples + sample] = from_float<WEIGHT, weight_t>(result);
    }
}
#endif
