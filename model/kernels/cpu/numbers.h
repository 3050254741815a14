/* Turns the numbers of a block into floats, whatever they are held as; it is included once for each instruction set. So the
 * products know codes and floats only.
 */

/* Numbers are what each 32 inputs of a block have for each output of a tile: weight = scale * value + minimum. */
typedef struct {
    float scales[BLOCK / GROUP][TILE];
    float minima[BLOCK / GROUP][TILE]; /* if the kind has an offset */
} Numbers;

/* Reads the n-th of some float16 numbers for each output of a tile. */
static inline vf read_halves(const uint8_t *from, int64_t n) { return vf_from_half((const uint16_t *)from + n * TILE); }

/* Does so for numbers that are floats of a scale's type. */
INLINE vf read_floats(int64_t scale, const uint8_t *from, int64_t n) {
    if (scale == SCALE_FLOAT32) return vf_load((const float *)from + n * TILE);
    return scale == SCALE_FLOAT16 ? read_halves(from, n) : vf_from_bfloat(from + n * TILE * 2);
}

INLINE vf read_scales(const Kind *kind, const BlockLayout *at, const uint8_t *block, int64_t n) {
    const uint8_t *scales = block + at->scales;
    switch (kind->scale) {
    case SCALE_FLOAT32:
    case SCALE_FLOAT16:
    case SCALE_BFLOAT16: return read_floats(kind->scale, scales, n);
    case SCALE_E8M0: return vf_from_exponents(scales + n * TILE);
    case SCALE_INT8: return vf_from_int8(scales + n * TILE);
    case SCALE_INT8_OF_256: return vf_mul(vf_from_int8(scales + n * TILE), read_halves(block, n * kind->group / SUPER));
    default: return vf_set1(1);
    }
}

/* Returns the zero points of a group, as values. */
INLINE vf read_zeros(const Kind *kind, const BlockLayout *at, const uint8_t *block, int64_t n, const float *offsets) {
    if (kind->group == 0) return vf_load(offsets);
    return vf_sub(vf_from_uint8(block + at->offsets + n * TILE), vf_set1(kind->bits == 8 ? 128 : 0));
}

INLINE vf read_minima(const Kind *kind, const BlockLayout *at, const uint8_t *block, int64_t n, const float *offsets) {
    const uint8_t *minima = block + at->offsets;
    if (kind->group == 0) return vf_load(offsets);
    if (kind->scale != SCALE_INT8_OF_256) return read_floats(kind->scale, minima, n);
    return vf_mul(vf_from_uint8(minima + n * TILE), read_halves(block + at->coarse_minima, n * kind->group / SUPER));
}

/* Returns what a group adds to its products; `offsets` are those of channels. */
INLINE vf read_offsets(const Kind *kind, const BlockLayout *at, const uint8_t *block, int64_t n, vf scales,
                              const float *offsets) {
    switch (kind->offset) {
    case OFFSET_ODD: return vf_mul(scales, vf_mul(vf_from_low_bits(block + at->scales + n * TILE), vf_set1((float)kind->shift)));
    case OFFSET_ZERO: return vf_mul(vf_sub(vf_set1(0), scales), read_zeros(kind, at, block, n, offsets));
    default: return read_minima(kind, at, block, n, offsets);
    }
}

/* Reads the numbers of some groups of 32 inputs. Where it is inlined, the words of the kind are constants. */
INLINE void read_groups(Kind kind, const BlockLayout *at, const float *factors, const uint8_t *block, int64_t groups, Numbers *out) {
    const int64_t every = kind.group ? kind.group / GROUP : groups;
    const vf factor = vf_load(factors);
    for (int64_t first = 0, n = 0; first < groups; first += every, n++) {
        const vf scales = vf_mul(read_scales(&kind, at, block, n), factor);
        for (int64_t next = first; next < first + every; next++) vf_store(out->scales[next], scales);
        if (kind.offset == OFFSET_NONE) continue;
        const vf offsets = read_offsets(&kind, at, block, n, scales, factors + PANEL);
        for (int64_t next = first; next < first + every; next++) vf_store(out->minima[next], offsets);
    }
}

#define READ(scale_, offset_)                                                                                         \
    case scale_ * 4 + offset_:                                                                                         \
        kind.scale = scale_;                                                                                           \
        kind.offset = offset_;                                                                                         \
        if (kind.group == GROUP) {                                                                                     \
            kind.group = GROUP;                                                                                        \
            read_groups(kind, at, factors, block, groups, out);                                                        \
        } else {                                                                                                       \
            read_groups(kind, at, factors, block, groups, out);                                                        \
        }                                                                                                              \
        break;

#define READ_ANY_OFFSET(scale) READ(scale, OFFSET_NONE) READ(scale, OFFSET_ODD) READ(scale, OFFSET_ZERO) READ(scale, OFFSET_MINIMUM)

/* Reads all numbers of a block of a tile; `header` holds the panel's factors, from the tile's first output on. */
static void read_numbers(const Weight *weight, const BlockLayout *at, const uint8_t *header, const uint8_t *block, Numbers *out) {
    const int64_t groups = weight->block / GROUP;
    const float *factors = (const float *)header;
    Kind kind = weight->kind;
    switch (kind.scale * 4 + kind.offset) {
        READ_ANY_OFFSET(SCALE_NONE)
        READ_ANY_OFFSET(SCALE_FLOAT32)
        READ_ANY_OFFSET(SCALE_FLOAT16)
        READ_ANY_OFFSET(SCALE_BFLOAT16)
        READ_ANY_OFFSET(SCALE_E8M0)
        READ_ANY_OFFSET(SCALE_INT8)
        READ_ANY_OFFSET(SCALE_INT8_OF_256)
    }
}
