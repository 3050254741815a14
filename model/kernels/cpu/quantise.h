/* Quantises weights to the same bits as the reference (model/weights/rounding.py). It is included once for each instruction
 * set. A group of an output lies in two registers, so a matrix is read as it is stored, and nothing is transposed.
 */

typedef float OutputGroup[GROUP]; /* a group of one output's weights */

/* PerOutput holds a number for each output of a tile; compilers vectorise loops over them. */
typedef float PerOutput[TILE];

/* A TileRows is rows of a source that become neighbours in a tile, from output `at` on. */
typedef struct {
    const Weight *weight;
    const Source *source;
    int64_t first, last; /* rows of the source */
    int64_t tile, at;
} TileRows;

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

static void round_to_halves(PerOutput numbers) {
    uint16_t halves[TILE];
    for (int n = 0; n < TILE; n++) halves[n] = to_half(numbers[n]);
    vf_store(numbers, vf_from_half(halves));
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

/* Reads one group of each row; outputs that have no row get zeros. */
static void read_group(const TileRows *rows, int64_t group, OutputGroup *w) {
    memset(w, 0, TILE * sizeof *w);
    for (int64_t row = rows->first; row < rows->last; row++) {
        widen(rows->source, row, rows->weight->inputs, group * GROUP, w[rows->at + row - rows->first]);
    }
}

/* Inverts scales; those below float32's normal numbers, whose inverse may be infinite, become 0. */
static inline void inverses(const PerOutput scales, PerOutput out) {
    for (int n = 0; n < TILE; n++) out[n] = fabsf(scales[n]) >= FLT_MIN ? 1 / scales[n] : 0;
}

/* A Table is the values of 4-bit codes, as steps over the middles between them. */
typedef struct {
    float first, last, middles[15], steps[15];
} Table;

static Table table_of(const Kind *kind) {
    Table out = {kind->values[0], kind->values[15], {0}, {0}};
    for (int n = 0; n < 15; n++) {
        out.middles[n] = (float)(kind->values[n] + kind->values[n + 1]) / 2;
        out.steps[n] = (float)(kind->values[n + 1] - kind->values[n]);
    }
    return out;
}

/* Returns the nearest values; the lower one where two are equally near. */
static inline vf nearest(const Table *table, vf x) {
    vf value = vf_set1(table->first);
    UNROLL for (int n = 0; n < 15; n++) {
        value = vf_add_over(value, vf_set1(table->steps[n]), x, vf_set1(table->middles[n]));
    }
    return value;
}

/* Returns the codes of the nearest values. */
static inline vf nearest_code(const Table *table, vf x) {
    vf code = vf_set1(0);
    UNROLL for (int n = 0; n < 15; n++) code = vf_add_over(code, vf_set1(1), x, vf_set1(table->middles[n]));
    return code;
}

/* Returns each output's weight of the largest magnitude, with its sign. */
static void find_largest(const OutputGroup *w, PerOutput out) {
    for (int n = 0; n < TILE; n++) {
        const vf a = vf_load(w[n]), b = vf_load(w[n] + TILE), zero = vf_set1(0);
        const float high = vf_most(vf_max(a, b)), low = vf_most(vf_max(vf_sub(zero, a), vf_sub(zero, b))); /* low: negated */
        out[n] = high >= low ? high : -low;
    }
}

/* Rounds all groups to a table in the given scales; returns the sums of value * weight and of value * value. */
static void sum_up(const Table *table, float shift, const OutputGroup *w, const PerOutput scales, PerOutput dots, PerOutput squares) {
    PerOutput inverse;
    inverses(scales, inverse);
    vf dot[TILE], square[TILE];
    for (int n = 0; n < TILE; n++) {
        const int row = n % 4 * 4 + n / 4; /* whose sum vf_sums puts at n */
        const vf a = vf_load(w[n]), b = vf_load(w[n] + TILE), by = vf_set1(shift), factor = vf_set1(inverse[n]);
        const vf u = vf_add(nearest(table, vf_sub(vf_mul(a, factor), by)), by);
        const vf v = vf_add(nearest(table, vf_sub(vf_mul(b, factor), by)), by);
        dot[row] = vf_add(vf_mul(u, a), vf_mul(v, b));
        square[row] = vf_add(vf_mul(u, u), vf_mul(v, v));
    }
    vf_store(dots, vf_sums(dot));
    vf_store(squares, vf_sums(square));
}

/* Finds each output's scale that loses little, and 1 if it goes with the shift. */
static void search(const Kind *kind, const Table *table, const OutputGroup *w, PerOutput best, PerOutput odd) {
    PerOutput largest, scales, dots, squares, most;
    find_largest(w, largest);
    for (int n = 0; n < TILE; n++) best[n] = odd[n] = 0, most[n] = -1;
    for (int64_t shift = 0; shift <= kind->shift; shift += kind->shift ? kind->shift : 1) {
        for (int last = 0; last < 2; last++) {
            const float end = 1 / ((last ? table->last : table->first) + (float)shift);
            for (int n = 0; n < TILE; n++) scales[n] = largest[n] * end;
            for (int refits = 0; refits <= 1; refits++) {
                sum_up(table, (float)shift, w, scales, dots, squares);
                for (int n = 0; n < TILE; n++) {
                    scales[n] = dots[n] / (squares[n] > 1 ? squares[n] : 1);
                    const float score = dots[n] * scales[n];
                    const int better = score > most[n];
                    most[n] = better ? score : most[n];
                    best[n] = better ? scales[n] : best[n];
                    odd[n] = better ? (float)(shift > 0) : odd[n];
                }
            }
        }
    }
}

/* A Wanted is what a group's scales should be. */
typedef struct {
    PerOutput scales;
    PerOutput offsets; /* 1 if the scales go with the shift, else 0; of even steps, what the codes begin at */
} Wanted;

/* An EvenSums holds sums over a group: of the errors, and what least squares need. */
typedef struct {
    PerOutput error, weights, quants, squares, products;
} EvenSums;

static inline vf even_code(vf w, vf inverse, vf minimum) {
    return vf_max(vf_min(vf_round(vf_mul(vf_sub(w, minimum), inverse)), vf_set1(15)), vf_set1(0));
}

static void sum_up_even(const OutputGroup *w, const PerOutput scales, const PerOutput minima, EvenSums *sums) {
    vf error[TILE], weights[TILE], quants[TILE], squares[TILE], products[TILE];
    for (int n = 0; n < TILE; n++) {
        const int row = n % 4 * 4 + n / 4; /* whose sum vf_sums puts at n */
        const vf scale = vf_set1(scales[n]), minimum = vf_set1(minima[n]), inverse = vf_set1(scales[n] > 0 ? 1 / scales[n] : 0);
        const vf a = vf_load(w[n]), b = vf_load(w[n] + TILE);
        const vf u = even_code(a, inverse, minimum), v = even_code(b, inverse, minimum);
        const vf p = vf_sub(vf_add(vf_mul(u, scale), minimum), a), q = vf_sub(vf_add(vf_mul(v, scale), minimum), b);
        error[row] = vf_add(vf_mul(p, p), vf_mul(q, q));
        weights[row] = vf_add(a, b);
        quants[row] = vf_add(u, v);
        squares[row] = vf_add(vf_mul(u, u), vf_mul(v, v));
        products[row] = vf_add(vf_mul(u, a), vf_mul(v, b));
    }
    vf_store(sums->error, vf_sums(error));
    vf_store(sums->weights, vf_sums(weights));
    vf_store(sums->quants, vf_sums(quants));
    vf_store(sums->squares, vf_sums(squares));
    vf_store(sums->products, vf_sums(products));
}

static void least_squares(const EvenSums *sums, PerOutput scales, PerOutput minima) {
    for (int n = 0; n < TILE; n++) {
        const float spread = GROUP * sums->squares[n] - sums->quants[n] * sums->quants[n];
        const float slope = GROUP * sums->products[n] - sums->quants[n] * sums->weights[n];
        scales[n] = spread > 0 ? slope / spread : 0;
    }
    round_to_halves(scales);
    for (int n = 0; n < TILE; n++) minima[n] = (sums->weights[n] - scales[n] * sums->quants[n]) / GROUP;
    round_to_halves(minima);
}

/* Finds each output's even steps: first from the lowest weight to the highest, and then a finer row that cuts them off. */
static void fit_even(const OutputGroup *w, Wanted *best) {
    PerOutput low, high, fewest, scales, minima;
    EvenSums sums;
    for (int n = 0; n < TILE; n++) {
        const vf a = vf_load(w[n]), b = vf_load(w[n] + TILE), zero = vf_set1(0);
        high[n] = vf_most(vf_max(a, b));
        low[n] = -vf_most(vf_max(vf_sub(zero, a), vf_sub(zero, b)));
        fewest[n] = INFINITY, best->scales[n] = best->offsets[n] = 0;
    }
    for (int cut = 0; cut <= 2; cut += 2) {
        for (int n = 0; n < TILE; n++) scales[n] = (high[n] - low[n]) / (float)(15 + cut);
        round_to_halves(scales);
        for (int n = 0; n < TILE; n++) minima[n] = low[n] + scales[n] * (float)(cut / 2);
        round_to_halves(minima);
        for (int refits = 0; refits <= 3; refits++) {
            sum_up_even(w, scales, minima, &sums);
            for (int n = 0; n < TILE; n++) {
                const int better = sums.error[n] < fewest[n];
                fewest[n] = better ? sums.error[n] : fewest[n];
                best->scales[n] = better ? scales[n] : best->scales[n];
                best->offsets[n] = better ? minima[n] : best->offsets[n];
            }
            least_squares(&sums, scales, minima);
        }
    }
}

/* Returns the least power of two that is larger; 0 for 0. */
static inline float power_above(float x) {
    int exponent;
    frexpf(x, &exponent);
    return x > 0 ? ldexpf(1, exponent) : 0;
}

/* Finds the scales of all groups, and then the outputs' factors. */
static void want_scales(const TileRows *rows, const Table *table, int64_t groups, Wanted *wanted, PerOutput factors) {
    const Kind *kind = &rows->weight->kind;
    PerOutput largest = {0};
    for (int64_t g = 0; g < groups; g++) {
        OutputGroup w[TILE];
        read_group(rows, g, w);
        if (kind->offset == OFFSET_MINIMUM) {
            fit_even(w, &wanted[g]);
        } else if (kind->offset == OFFSET_ODD) {
            search(kind, table, w, wanted[g].scales, wanted[g].offsets);
        } else {
            find_largest(w, wanted[g].scales);
            for (int n = 0; n < TILE; n++) wanted[g].scales[n] = fabsf(wanted[g].scales[n]) / 127;
        }
        for (int n = 0; n < TILE; n++) {
            const float scale = fabsf(wanted[g].scales[n]);
            largest[n] = scale > largest[n] ? scale : largest[n];
        }
    }
    for (int n = 0; n < TILE; n++) {
        factors[n] = kind->offset == OFFSET_MINIMUM ? 1 : largest[n] / (kind->offset == OFFSET_ODD ? 126 : 127);
        if (kind->offset == OFFSET_NONE && kind->scale == SCALE_FLOAT16) factors[n] = power_above(largest[n]);
    }
}

/* Rounds scales to numbers in int8 or float16, which are stored in `bytes`; returns the scales that they make. */
static void round_scales(const Kind *kind, const Wanted *wanted, const PerOutput factors, uint8_t *bytes, PerOutput scales) {
    PerOutput inverse;
    inverses(factors, inverse);
    for (int n = 0; n < TILE; n++) scales[n] = wanted->scales[n] * inverse[n];
    if (kind->scale == SCALE_FLOAT16) {
        uint16_t halves[TILE];
        for (int n = 0; n < TILE; n++) halves[n] = to_half(scales[n]);
        memcpy(bytes, halves, sizeof halves);
        vf_store(scales, vf_from_half(halves));
    }
    for (int n = 0; n < TILE && kind->scale == SCALE_INT8; n++) {
        const float odd = wanted->offsets[n], up = ceilf(scales[n]);
        scales[n] = kind->offset == OFFSET_ODD ? rintf((scales[n] - odd) * 0.5f) * 2 + odd : up < 127 ? up : 127;
        bytes[n] = (uint8_t)(int8_t)scales[n];
    }
    for (int n = 0; n < TILE; n++) scales[n] *= factors[n];
}

/* Rounds one output's group to codes of 8 bits: 8 words of 4 inputs. */
static void round_to_bytes(const float *w, float inverse, uint32_t *words) {
    int8_t quants[GROUP];
    for (int k = 0; k < GROUP; k += TILE) {
        const vf quant = vf_round(vf_mul(vf_load(w + k), vf_set1(inverse)));
        vf_store_int8(quants + k, vf_max(vf_min(quant, vf_set1(127)), vf_set1(-127)));
    }
    memcpy(words, quants, sizeof quants);
    for (int s = 0; s < GROUP / SLICE; s++) words[s] ^= 0x80808080; /* + 128 */
}

/* Rounds one output's group to codes of 4 bits: 4 words, whose bytes hold an input and the one 16 further on. */
static void round_to_codes(const Table *table, const float *w, float inverse, float shift, uint32_t *words) {
    int8_t low[TILE], high[TILE];
    const vf factor = vf_set1(inverse), by = vf_set1(shift);
    vf_store_int8(low, nearest_code(table, vf_sub(vf_mul(vf_load(w), factor), by)));
    vf_store_int8(high, nearest_code(table, vf_sub(vf_mul(vf_load(w + TILE), factor), by)));
    for (int n = 0; n < TILE; n++) low[n] = (int8_t)(low[n] | high[n] << 4);
    memcpy(words, low, sizeof low);
}

/* Rounds one output's group to even steps. */
static void round_to_steps(const float *w, float scale, float minimum, uint32_t *words) {
    int8_t low[TILE], high[TILE];
    const vf inverse = vf_set1(scale > 0 ? 1 / scale : 0), from = vf_set1(minimum);
    vf_store_int8(low, even_code(vf_load(w), inverse, from));
    vf_store_int8(high, even_code(vf_load(w + TILE), inverse, from));
    for (int n = 0; n < TILE; n++) low[n] = (int8_t)(low[n] | high[n] << 4);
    memcpy(words, low, sizeof low);
}

/* A Stored is where a group's numbers and codes go, from the first output of the tile on. */
typedef struct {
    uint8_t *scales, *minima, *codes;
} Stored;

static Stored stored_group(const TileRows *rows, int64_t group) {
    const Weight *weight = rows->weight;
    const BlockLayout at = layout_of(weight);
    const int64_t in_block = weight->block / GROUP, n = group % in_block, bytes = weight->kind.scale == SCALE_FLOAT16 ? 2 : 1;
    const int64_t tile = group / in_block * TILES + rows->tile % TILES;
    uint8_t *block = (uint8_t *)panel_of(weight, rows->tile / TILES) + header_of(weight) + tile * at.bytes;
    return (Stored){block + at.scales + n * TILE * bytes, block + at.offsets + n * TILE * bytes,
                    block + at.codes + n * weight->kind.bits * TILE * SLICE};
}

/* Stores one group of the rows, with the numbers that belong to it. */
static void store_group(const TileRows *rows, const Table *table, int64_t group, const Wanted *wanted, const PerOutput factors) {
    const Kind *kind = &rows->weight->kind;
    const Stored to = stored_group(rows, group);
    const int64_t count = rows->last - rows->first;
    const size_t width = kind->scale == SCALE_FLOAT16 ? sizeof(uint16_t) : 1;
    uint8_t numbers[2 * TILE];
    PerOutput scales, inverse;
    OutputGroup w[TILE];
    read_group(rows, group, w);
    round_scales(kind, wanted, factors, numbers, scales);
    inverses(scales, inverse);
    for (int64_t n = rows->at; n < rows->at + count; n++) {
        uint32_t words[GROUP / SLICE];
        if (kind->offset == OFFSET_MINIMUM) {
            const uint16_t scale = to_half(wanted->scales[n]), minimum = to_half(wanted->offsets[n]);
            memcpy(to.scales + 2 * n, &scale, sizeof scale);
            memcpy(to.minima + 2 * n, &minimum, sizeof minimum);
            round_to_steps(w[n], wanted->scales[n], wanted->offsets[n], words);
        } else {
            memcpy(to.scales + (size_t)n * width, numbers + (size_t)n * width, width);
            if (kind->bits == 8) round_to_bytes(w[n], inverse[n], words);
            if (kind->bits == 4) round_to_codes(table, w[n], inverse[n], wanted->offsets[n] * (float)kind->shift, words);
        }
        for (int64_t s = 0; s < kind->bits; s++) memcpy(to.codes + (s * TILE + n) * SLICE, words + s, SLICE);
    }
}

static void store_factors(const TileRows *rows, const PerOutput factors) {
    uint8_t *panel = (uint8_t *)panel_of(rows->weight, rows->tile / TILES);
    const int64_t output = rows->tile % TILES * TILE + rows->at;
    memcpy(panel + output * 4, factors + rows->at, (size_t)(rows->last - rows->first) * 4);
}

static void quantise_tile(const TileRows *rows) {
    const int64_t groups = groups_of(rows->weight);
    const Table table = table_of(&rows->weight->kind);
    Wanted *wanted = malloc((size_t)groups * sizeof *wanted);
    if (wanted == NULL) abort(); /* The system also ends a process when promised memory is missing. */
    PerOutput factors;
    want_scales(rows, &table, groups, wanted, factors);
    store_factors(rows, factors);
    for (int64_t g = 0; g < groups; g++) store_group(rows, &table, g, &wanted[g], factors);
    free(wanted);
}

static void quantise(const Weight *weight, const Source *source) {
    for (int64_t row = 0; row < source->count;) {
        const int64_t output = source->first + row, at = output % TILE;
        const int64_t end = row + TILE - at < source->count ? row + TILE - at : source->count;
        const TileRows rows = {weight, source, row, end, source->tile + output / TILE * source->stride, at};
        quantise_tile(&rows);
        row = end;
    }
}
