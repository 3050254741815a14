/* Turns the numbers of a block into floats, whatever they are held as; it is included once for each instruction set. So the
 * products know codes and floats only. Compilers vectorise the loops over a tile's outputs.
 */

/* Numbers are what each 32 inputs of a block have for each output of a tile: weight = scale * value + minimum. */
typedef struct {
    float scales[BLOCK / GROUP][TILE];
    float minima[BLOCK / GROUP][TILE]; /* if the kind has an offset */
} Numbers;

static inline float from_bits(uint32_t bits) {
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* Reads the n-th of some numbers for each output. */
static inline void read_halves(const uint8_t *from, int64_t n, float *out) {
    vf_store(out, vf_from_half((const uint16_t *)from + n * TILE));
}

static inline void read_bfloats(const uint8_t *from, int64_t n, float *out) {
    const uint16_t *words = (const uint16_t *)from + n * TILE;
    for (int output = 0; output < TILE; output++) out[output] = from_bits((uint32_t)words[output] << 16);
}

static inline void read_exponents(const uint8_t *from, int64_t n, float *out) { /* 0 is the subnormal number 2^-127. */
    for (int output = 0; output < TILE; output++) {
        const uint32_t exponent = from[n * TILE + output];
        out[output] = from_bits(exponent ? exponent << 23 : 1u << 22);
    }
}

static inline void read_bytes(const uint8_t *from, int64_t n, float *out) {
    for (int output = 0; output < TILE; output++) out[output] = (float)(int8_t)from[n * TILE + output];
}

static inline void read_unsigned(const uint8_t *from, int64_t n, float *out) {
    for (int output = 0; output < TILE; output++) out[output] = (float)from[n * TILE + output];
}

static inline void scale_by(float *numbers, const float *factors) {
    for (int output = 0; output < TILE; output++) numbers[output] *= factors[output];
}

static inline void read_scales(const Kind *kind, const BlockLayout *at, const uint8_t *block, int64_t n, float *out) {
    const uint8_t *scales = block + at->scales;
    float coarse[TILE];
    switch (kind->scale) {
    case SCALE_NONE:
        for (int output = 0; output < TILE; output++) out[output] = 1;
        break;
    case SCALE_FLOAT16: read_halves(scales, n, out); break;
    case SCALE_BFLOAT16: read_bfloats(scales, n, out); break;
    case SCALE_E8M0: read_exponents(scales, n, out); break;
    case SCALE_INT8: read_bytes(scales, n, out); break;
    case SCALE_INT8_OF_256:
        read_bytes(scales, n, out);
        read_halves(block, n * kind->group / SUPER, coarse);
        scale_by(out, coarse);
    }
}

/* Reads what a group adds to its products; `scales` are the group's, and `offsets` those of channels. */
static inline void read_minima(const Weight *weight, const BlockLayout *at, const uint8_t *block, int64_t n,
                               const float *scales, const float *offsets, float *out) {
    const Kind *kind = &weight->kind;
    float numbers[TILE];
    if (kind->offset == OFFSET_ODD) {
        for (int output = 0; output < TILE; output++) {
            const int odd = block[at->scales + n * TILE + output] & 1;
            out[output] = scales[output] * (float)(odd * (int)kind->shift);
        }
        return;
    }
    if (kind->group == 0) {
        memcpy(numbers, offsets, sizeof numbers);
    } else if (kind->offset == OFFSET_ZERO) {
        read_unsigned(block + at->offsets, n, numbers);
        for (int output = 0; output < TILE && kind->bits == 8; output++) numbers[output] -= 128;
    } else if (kind->scale == SCALE_INT8_OF_256) {
        float coarse[TILE];
        read_unsigned(block + at->offsets, n, numbers);
        read_halves(block + at->coarse_minima, n * kind->group / SUPER, coarse);
        scale_by(numbers, coarse);
    } else {
        (kind->scale == SCALE_FLOAT16 ? read_halves : read_bfloats)(block + at->offsets, n, numbers);
    }
    for (int output = 0; output < TILE; output++) {
        out[output] = kind->offset == OFFSET_ZERO ? -scales[output] * numbers[output] : numbers[output];
    }
}

/* Reads all numbers of a block of a tile; `header` holds the panel's factors, from the tile's first output on. */
static void read_numbers(const Weight *weight, const uint8_t *header, const uint8_t *block, Numbers *out) {
    const BlockLayout at = layout_of(weight);
    const Kind *kind = &weight->kind;
    const int64_t group = kind->group ? kind->group : weight->block, every = group / GROUP;
    const float *factors = (const float *)header, *offsets = factors + PANEL;
    for (int64_t n = 0; n < weight->block / group; n++) {
        float *scales = out->scales[n * every], *minima = out->minima[n * every];
        read_scales(kind, &at, block, n, scales);
        scale_by(scales, factors);
        if (kind->offset != OFFSET_NONE) read_minima(weight, &at, block, n, scales, offsets, minima);
        for (int64_t next = 1; next < every; next++) {
            memcpy(out->scales[n * every + next], scales, sizeof *out->scales);
            if (kind->offset != OFFSET_NONE) memcpy(out->minima[n * every + next], minima, sizeof *out->minima);
        }
    }
}
