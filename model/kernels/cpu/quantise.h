/* Quantises weights to the same bits as the references (model/weights/tiles.py, model/weights/grid.py). It is included
 * once for each instruction set.
 */

typedef float OutputGroup[GROUP]; /* a group of one output's weights */

/* PerOutput holds a number for each output of a tile; compilers vectorise loops over them. */
typedef float PerOutput[TILE];

/* A PackedGroup is a quantised group of a tile. */
typedef struct {
    uint32_t words[GROUP / SLICE][TILE]; /* int4 uses half of them */
    uint16_t scales[TILE], mins[TILE];
} PackedGroup;

/* Converts float32 to float16, rounding half to even; x must be within float16's range. */
static inline uint16_t to_half(float x) {
    union { float value; uint32_t bits; } in = {x}, out;
    const uint32_t sign = in.bits >> 16 & 0x8000, magnitude = in.bits & 0x7fffffff;
    out.bits = magnitude;
    out.value += 0.5f; /* A subnormal's unit is the last bit of 0.5. */
    const uint32_t subnormal = out.bits - 0x3f000000;
    const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    return (uint16_t)(sign | (magnitude < 113u << 23 ? subnormal : normal));
}

static void round_to_half(const PerOutput in, PerOutput out, uint16_t *halves) {
    for (int n = 0; n < TILE; n++) halves[n] = to_half(in[n]);
    vf_store(out, vf_from_half(halves));
}

/* Converts one group of a row to float32, with zeros after the row's end. */
static void widen(const Source *source, int64_t row, int64_t inputs, int64_t at, float *out) {
    const size_t width = source->type == FLOAT32 ? 4 : 2;
    const unsigned char *from = (const unsigned char *)source->rows + (size_t)(row * inputs + at) * width;
    unsigned char padded[GROUP * 4] = {0};
    if (at + GROUP > inputs) from = memcpy(padded, from, at < inputs ? (size_t)(inputs - at) * width : 0);
    if (source->type == FLOAT32) {
        memcpy(out, from, GROUP * 4);
        return;
    }
    uint16_t words[GROUP];
    memcpy(words, from, sizeof words);
    if (source->type == FLOAT16) {
        for (int n = 0; n < GROUP; n += TILE) vf_store(out + n, vf_from_half(words + n));
        return;
    }
    for (int n = 0; n < GROUP; n++) {
        const uint32_t bits = (uint32_t)words[n] << 16;
        memcpy(out + n, &bits, 4);
    }
}

static void round_int8(const OutputGroup *w, PackedGroup *out) {
    PerOutput scales;
    for (int n = 0; n < TILE; n++) {
        scales[n] = vf_most(vf_max(vf_abs(vf_load(w[n])), vf_abs(vf_load(w[n] + TILE)))) / 127;
    }
    round_to_half(scales, scales, out->scales);
    for (int n = 0; n < TILE; n++) {
        const vf scale = vf_set1(scales[n] > 0 ? scales[n] : INFINITY);
        int8_t quants[GROUP];
        for (int k = 0; k < GROUP; k += TILE) {
            const vf quant = vf_round(vf_div(vf_load(w[n] + k), scale));
            vf_store_int8(quants + k, vf_max(vf_min(quant, vf_set1(127)), vf_set1(-127)));
        }
        for (int s = 0; s < GROUP / SLICE; s++) {
            memcpy(&out->words[s][n], quants + s * SLICE, SLICE);
            out->words[s][n] ^= 0x80808080; /* + 128 */
        }
    }
}

static inline float nearest(float w, float inverse, float min) {
    const float quant = rintf((w - min) * inverse);
    return quant > 15 ? 15 : quant < 0 ? 0 : quant;
}

static inline void inverses(const PerOutput scales, PerOutput out) {
    for (int n = 0; n < TILE; n++) out[n] = scales[n] > 0 ? 1 / scales[n] : 0;
}

static inline void total(const PerOutput *parts, PerOutput out) {
    for (int n = 0; n < TILE; n++) out[n] = (parts[0][n] + parts[1][n]) + (parts[2][n] + parts[3][n]);
}

typedef struct {
    PerOutput error, weights, quants, squares, products; /* sums over a group */
} GroupSums;

static void sum_up(const PerOutput *w, const PerOutput scales, const PerOutput mins, GroupSums *sums) {
    PerOutput error[SLICE] = {{0}}, weights[SLICE] = {{0}}, quants[SLICE] = {{0}}, squares[SLICE] = {{0}}, products[SLICE] = {{0}};
    PerOutput inverse;
    inverses(scales, inverse);
    for (int k = 0; k < GROUP; k++) {
        const int j = k % SLICE;
        for (int n = 0; n < TILE; n++) {
            const float quant = nearest(w[k][n], inverse[n], mins[n]);
            const float off = quant * scales[n] + mins[n] - w[k][n];
            error[j][n] += off * off;
            weights[j][n] += w[k][n];
            quants[j][n] += quant;
            squares[j][n] += quant * quant;
            products[j][n] += quant * w[k][n];
        }
    }
    total(error, sums->error);
    total(weights, sums->weights);
    total(quants, sums->quants);
    total(squares, sums->squares);
    total(products, sums->products);
}

static void least_squares(const GroupSums *sums, PerOutput scales, PerOutput mins) {
    uint16_t halves[TILE];
    for (int n = 0; n < TILE; n++) {
        const float spread = GROUP * sums->squares[n] - sums->quants[n] * sums->quants[n];
        const float slope = GROUP * sums->products[n] - sums->quants[n] * sums->weights[n];
        scales[n] = spread > 0 ? slope / spread : 0;
    }
    round_to_half(scales, scales, halves);
    for (int n = 0; n < TILE; n++) mins[n] = (sums->weights[n] - scales[n] * sums->quants[n]) / GROUP;
    round_to_half(mins, mins, halves);
}

static void fit_int4(const PerOutput *w, PerOutput best_scales, PerOutput best_mins) {
    PerOutput low, high, fewest, scales, mins;
    uint16_t halves[TILE];
    GroupSums sums;
    for (int n = 0; n < TILE; n++) low[n] = high[n] = w[0][n], fewest[n] = INFINITY, best_scales[n] = best_mins[n] = 0;
    for (int k = 1; k < GROUP; k++) {
        for (int n = 0; n < TILE; n++) {
            low[n] = w[k][n] < low[n] ? w[k][n] : low[n];
            high[n] = w[k][n] > high[n] ? w[k][n] : high[n];
        }
    }
    for (int cut = 0; cut <= 2; cut += 2) {
        for (int n = 0; n < TILE; n++) scales[n] = (high[n] - low[n]) / (float)(15 + cut);
        round_to_half(scales, scales, halves);
        for (int n = 0; n < TILE; n++) mins[n] = low[n] + scales[n] * (float)(cut / 2);
        round_to_half(mins, mins, halves);
        for (int refits = 0; refits <= 3; refits++) {
            sum_up(w, scales, mins, &sums);
            for (int n = 0; n < TILE; n++) {
                const int better = sums.error[n] < fewest[n];
                fewest[n] = better ? sums.error[n] : fewest[n];
                best_scales[n] = better ? scales[n] : best_scales[n];
                best_mins[n] = better ? mins[n] : best_mins[n];
            }
            least_squares(&sums, scales, mins);
        }
    }
}

/* Packs slice s of a group's quants: a byte for each of four inputs, for every output. */
static inline void pack_slice(const PerOutput *quants, int s, uint32_t *words) {
    for (int n = 0; n < TILE; n++) {
        words[n] = (uint32_t)(int32_t)quants[s * SLICE][n] | (uint32_t)(int32_t)quants[s * SLICE + 1][n] << 8 |
                   (uint32_t)(int32_t)quants[s * SLICE + 2][n] << 16 | (uint32_t)(int32_t)quants[s * SLICE + 3][n] << 24;
    }
}

static void round_int4(const OutputGroup *outputs, PackedGroup *out) {
    PerOutput w[GROUP], scales, mins, inverse, quants[GROUP];
    for (int k = 0; k < GROUP; k++) {
        for (int n = 0; n < TILE; n++) w[k][n] = outputs[n][k];
    }
    fit_int4(w, scales, mins);
    round_to_half(scales, scales, out->scales);
    round_to_half(mins, mins, out->mins);
    inverses(scales, inverse);
    for (int k = 0; k < GROUP; k++) {
        for (int n = 0; n < TILE; n++) quants[k][n] = nearest(w[k][n], inverse[n], mins[n]);
    }
    for (int s = 0; s < GROUP / SLICE / 2; s++) {
        uint32_t high[TILE];
        pack_slice(quants, s, out->words[s]);
        pack_slice(quants, s + GROUP / SLICE / 2, high);
        for (int n = 0; n < TILE; n++) out->words[s][n] |= high[n] << 4;
    }
}

static uint8_t *cell_of(const Weight *weight, int64_t tile, int64_t cell) {
    const int64_t blocks = groups_of(weight->inputs) / 2 / weight->block, block = cell / weight->block;
    const int64_t before = ((tile / TILES * blocks + block) * TILES + tile % TILES) * weight->block + cell % weight->block;
    return (uint8_t *)weight->cells + before * bytes_of_cell(weight->bits);
}

/* Stores one group of some outputs of a tile, from `at` on. */
static void store_group(const Weight *weight, const PackedGroup *packed, int64_t tile, int64_t group, int64_t at, size_t outputs) {
    const int64_t half = group % 2, slices = weight->bits, to = (half * TILE + at) * 2; /* bytes */
    uint8_t *cell = cell_of(weight, tile, group / 2);
    memcpy(cell + to, packed->scales + at, outputs * 2);
    if (weight->bits == 4) memcpy((cell += NUMBERS) + to, packed->mins + at, outputs * 2);
    uint8_t *quants = cell + NUMBERS + (half * slices * TILE + at) * SLICE;
    for (int s = 0; s < slices; s++) memcpy(quants + s * TILE * SLICE, packed->words[s] + at, outputs * SLICE);
}

/* Makes the source's rows first to last outputs of one tile, from output `at` on. */
static void quantise_tile(const Weight *weight, const Source *source, int64_t tile, int64_t at, int64_t first, int64_t last) {
    for (int64_t g = 0; g < groups_of(weight->inputs); g++) {
        OutputGroup w[TILE] = {{0}};
        for (int64_t row = first; row < last; row++) widen(source, row, weight->inputs, g * GROUP, w[at + row - first]);
        PackedGroup packed;
        (weight->bits == 8 ? round_int8 : round_int4)(w, &packed);
        store_group(weight, &packed, tile, g, at, (size_t)(last - first));
    }
}

static void quantise(const Weight *weight, const Source *source) {
    for (int64_t row = 0; row < source->count;) {
        const int64_t output = source->first + row, at = output % TILE;
        const int64_t end = row + TILE - at < source->count ? row + TILE - at : source->count;
        quantise_tile(weight, source, source->tile + output / TILE * source->stride, at, row, end);
        row = end;
    }
}
