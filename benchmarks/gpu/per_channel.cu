// A yardstick, written for this benchmark: deformable attention in the plain manner of the first CUDA operators. A
// thread for every channel works out all coordinates for itself and reads 4 bytes at a time; backward, a block serves one
// query and head, adds 4 bytes at a time, and its first thread sums up the products of all channels at every point.
// Locations and weights come ready made. Two dimensions, float only. The original extensions are not part of this
// repository; where one is installed, the benchmark measures it beside this.

struct Sizes {
    int batch, tokens, queries, heads, channels, levels, points;
    int shapes[8][3];  // first token, rows, columns
};

__device__ float read(const float* value, const Sizes& sizes, const int* level, int y, int x) {
    if (y < 0 || x < 0 || y >= level[1] || x >= level[2]) return 0.0f;
    return value[(level[0] + y * level[2] + x) * sizes.heads * sizes.channels];
}

extern "C" __global__ void per_channel_forward(const float* value, const float* locations, const float* weights,
                                               float* output, const Sizes sizes) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= sizes.batch * sizes.queries * sizes.heads * sizes.channels) return;
    const int channel = index % sizes.channels, item = index / sizes.channels, head = item % sizes.heads;
    const int batch = item / sizes.heads / sizes.queries;
    value += (batch * sizes.tokens * sizes.heads + head) * sizes.channels + channel;
    float total = 0.0f;
    for (int l = 0; l < sizes.levels; ++l) {
        const int* level = sizes.shapes[l];
        for (int p = 0; p < sizes.points; ++p) {
            const int sample = (item * sizes.levels + l) * sizes.points + p;
            const float x = locations[2 * sample] * level[2] - 0.5f, y = locations[2 * sample + 1] * level[1] - 0.5f;
            const int left = (int)floorf(x), top = (int)floorf(y);
            const float right = x - left, below = y - top;
            total += weights[sample] * ((1 - below) * (1 - right) * read(value, sizes, level, top, left) +
                                        (1 - below) * right * read(value, sizes, level, top, left + 1) +
                                        below * (1 - right) * read(value, sizes, level, top + 1, left) +
                                        below * right * read(value, sizes, level, top + 1, left + 1));
        }
    }
    output[index] = total;
}

// A block of `channels` threads for each query and head; dynamic shared memory is not needed up to 256 channels.
extern "C" __global__ void per_channel_backward(const float* grad_output, const float* value, const float* locations,
                                                const float* weights, float* grad_value, float* grad_locations,
                                                float* grad_weights, const Sizes sizes) {
    __shared__ float parts[3][256];
    const int item = blockIdx.x, channel = threadIdx.x, head = item % sizes.heads;
    const int batch = item / sizes.heads / sizes.queries;
    const int base = (batch * sizes.tokens * sizes.heads + head) * sizes.channels + channel;
    const float grad = grad_output[item * sizes.channels + channel];
    for (int l = 0; l < sizes.levels; ++l) {
        const int* level = sizes.shapes[l];
        for (int p = 0; p < sizes.points; ++p) {
            const int sample = (item * sizes.levels + l) * sizes.points + p;
            const float x = locations[2 * sample] * level[2] - 0.5f, y = locations[2 * sample + 1] * level[1] - 0.5f;
            const int left = (int)floorf(x), top = (int)floorf(y);
            const float right = x - left, below = y - top, weight = weights[sample];
            float along_x = 0.0f, along_y = 0.0f, mixed = 0.0f;
            for (int corner = 0; corner < 4; ++corner) {
                const int column = left + (corner & 1), row = top + (corner >> 1);
                if (row < 0 || column < 0 || row >= level[1] || column >= level[2]) continue;
                const float share_x = corner & 1 ? right : 1 - right, share_y = corner >> 1 ? below : 1 - below;
                const int place = base + (level[0] + row * level[2] + column) * sizes.heads * sizes.channels;
                const float found = value[place];
                along_x += (corner & 1 ? share_y : -share_y) * found;
                along_y += (corner >> 1 ? share_x : -share_x) * found;
                mixed += share_x * share_y * found;
                atomicAdd(grad_value + place, weight * share_x * share_y * grad);
            }
            parts[0][channel] = along_x * level[2] * weight * grad;
            parts[1][channel] = along_y * level[1] * weight * grad;
            parts[2][channel] = mixed * grad;
            __syncthreads();
            if (channel == 0) {
                float sums[3] = {0.0f, 0.0f, 0.0f};
                for (int c = 0; c < sizes.channels; ++c)
                    for (int i = 0; i < 3; ++i) sums[i] += parts[i][c];
                grad_locations[2 * sample] = sums[0];
                grad_locations[2 * sample + 1] = sums[1];
                grad_weights[sample] = sums[2];
            }
            __syncthreads();
        }
    }
}
