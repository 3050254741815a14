/* Holds operations on one row of activations; it is included once for each instruction set. */

/* Loads the 16 floats from p[at] on, with zeros after p[size - 1]. */
static inline vf load_padded(const float *p, int64_t at, int64_t size) {
    if (at + TILE <= size) return vf_load(p + at);
    float part[TILE] = {0};
    for (int64_t n = at; n < size; n++) part[n - at] = p[n];
    return vf_load(part);
}

static inline void store_padded(float *p, int64_t at, int64_t size, vf x) {
    if (at + TILE <= size) {
        vf_store(p + at, x);
        return;
    }
    float part[TILE];
    vf_store(part, x);
    for (int64_t n = at; n < size; n++) p[n] = part[n - at];
}

/* Returns the sum of 16 floats, which are always added in the same order. */
static inline float sum_of(vf x) {
    float at[TILE];
    vf_store(at, x);
    for (int width = TILE / 2; width; width /= 2) {
        for (int n = 0; n < width; n++) at[n] += at[n + width];
    }
    return at[0];
}

static float dot(const float *a, const float *b, int64_t size) {
    vf sum = vf_set1(0);
    for (int64_t n = 0; n < size; n += TILE) sum = vf_fma(load_padded(a, n, size), load_padded(b, n, size), sum);
    return sum_of(sum);
}

/* Returns e to the x, to two units in the last place. From -87 down it returns 2e-38, and it returns no more than e^88. A
 * NaN stays NaN: given a NaN and a number, min and max return their second argument. */
static inline vf exponential(vf x) {
    const vf bounded = vf_max(vf_set1(-87.0f), vf_min(vf_set1(88.0f), x));
    const vf n = vf_round(vf_mul(bounded, vf_set1(1.44269504f)));
    vf rest = vf_fma(n, vf_set1(-0.693359375f), bounded); /* ln 2 in two parts */
    rest = vf_fma(n, vf_set1(2.12194440e-4f), rest);
    vf p = vf_set1(1.9875691500e-4f); /* Cephes' expf: a minimax polynomial on [-ln 2 / 2, ln 2 / 2] */
    p = vf_fma(p, rest, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, rest, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, rest, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, rest, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, rest, vf_set1(5.0000001201e-1f));
    p = vf_fma(vf_mul(rest, rest), p, vf_add(rest, vf_set1(1.0f)));
    return vf_times_power_of_2(p, n);
}

/* Computes root-mean-square normalisation (https://arxiv.org/abs/1910.07467). */
static void normalise(const float *x, const float *weight, float eps, int64_t size, float *out) {
    const vf scale = vf_set1(1.0f / sqrtf(dot(x, x, size) / (float)size + eps));
    for (int64_t n = 0; n < size; n += TILE) {
        const vf scaled = vf_mul(load_padded(x, n, size), scale);
        store_padded(out, n, size, vf_mul(scaled, load_padded(weight, n, size)));
    }
}

/* Quantises one group to int8, with scale = largest magnitude / 127. A NaN or an infinity in the input makes the scale,
 * and so the result, NaN. The rounding error takes the place of the input. */
static inline void quantise_group(vf *low, vf *high, Group *out) {
    const vf poison = vf_mul(vf_add(vf_mul(*low, vf_set1(0)), *high), vf_set1(0));
    const float most = vf_most(vf_max(vf_abs(*low), vf_abs(*high)));
    const float scale = most / 127.0f;
    const vf divisor = vf_set1(most > 0 ? scale : 1.0f);
    const vf first = vf_round(vf_div(*low, divisor)), second = vf_round(vf_div(*high, divisor));
    vf_store_int8(out->quants, first);
    vf_store_int8(out->quants + TILE, second);
    *low = vf_sub(*low, vf_mul(first, divisor));
    *high = vf_sub(*high, vf_mul(second, divisor));
    int32_t sum = 0;
    for (int n = 0; n < GROUP; n++) sum += out->quants[n];
    out->scale = scale + sum_of(poison);
    out->total = out->scale * (float)sum;
    out->lift = -128 * sum;
}

/* Returns the rows of a chunk when so many rows are cut into few chunks of nearly the same size; a row's terms stay together. */
static inline int64_t chunk_for(int64_t rows, int64_t terms) {
    const int64_t chunks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    return rows ? round_up((rows + chunks - 1) / chunks, terms) : 1;
}

/* Returns a row's first group; the next one is *stride further on. */
static inline Group *group_of(const Activations *activations, Rows rows, int64_t row, int64_t *stride) {
    const int64_t first = row / rows.chunk * rows.chunk;
    *stride = rows.count - first < rows.chunk ? rows.count - first : rows.chunk;
    return (Group *)rows.all + first * activations->groups + row - first;
}

/* Loads the activations that 16 inputs of a weight multiply, with zeros after the last of them. */
static inline vf load_inputs(const Weight *weight, const float *x, int64_t at) {
    if (weight->order == NULL) return load_padded(x, at, weight->inputs);
    float part[TILE] = {0};
    for (int64_t n = at; n < at + TILE && n < weight->inputs; n++) part[n - at] = x[weight->order[n]];
    return vf_load(part);
}

/* Quantises a row for a weight; its terms are rows one after the other. */
static void quantise_row(const Weight *weight, const float *x, const Activations *activations, Rows rows, int64_t row) {
    int64_t stride;
    Group *out = group_of(activations, rows, row * activations->terms, &stride);
    for (int64_t g = 0; g < activations->groups; g++) {
        vf low = load_inputs(weight, x, g * GROUP), high = load_inputs(weight, x, g * GROUP + TILE);
        for (int64_t term = 0; term < activations->terms; term++) quantise_group(&low, &high, out + g * stride + term);
    }
}
