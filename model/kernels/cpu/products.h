/* Products of a few rows of activations with one tile of 16 outputs; included once for each instruction set.
 *
 * A tile's weights are read once for up to ROWS rows. Each row has sums of its own, to which the groups are added in
 * order, the dot product of a group being an exact integer: so a row's result does not depend on the rows beside it.
 */

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__ /* it takes a number for the very number of turns, and leaves loops of fewer, and arrays in memory */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum { SLICES = GROUP / SLICE, BYTES_OF_SLICE = TILE * SLICE };

/* Brings some slices nearer. */
INLINE void fetch_slices(const uint8_t *from, const int slices) {
    UNROLL for (int s = 0; s < slices; s++) __builtin_prefetch(from + s * BYTES_OF_SLICE, 0, 2);
}

INLINE void products_int8(const Weight *weight, int64_t tile, const Group *const *rows, const int count, int64_t next, vf *out) {
    const int64_t groups = round_up(weight->inputs, GROUP) / GROUP;
    const uint8_t *quants = weight->quants + tile * groups * SLICES * BYTES_OF_SLICE;
    const int64_t ahead = next * groups * SLICES * BYTES_OF_SLICE; /* bytes */
    const uint16_t *scales = weight->scales + tile * groups * TILE;
    vf sums[ROWS];
    UNROLL for (int r = 0; r < count; r++) sums[r] = vf_set1(0);
    for (int64_t g = 0; g < groups; g++) {
        if (next) fetch_slices(quants + ahead + g * SLICES * BYTES_OF_SLICE, SLICES);
        vi dots[ROWS];
        UNROLL for (int r = 0; r < count; r++) dots[r] = vi_begin8(rows[r][g].sum);
        UNROLL for (int s = 0; s < SLICES; s++) {
            const vb weights = vb_load(quants + (g * SLICES + s) * BYTES_OF_SLICE);
            UNROLL for (int r = 0; r < count; r++) {
                dots[r] = vi_dot8(dots[r], weights, rows[r][g].quants + s * SLICE);
            }
        }
        const vf scale = vf_from_half(scales + g * TILE);
        UNROLL for (int r = 0; r < count; r++) {
            sums[r] = vf_fma(vf_from_int(dots[r]), vf_mul(scale, vf_set1(rows[r][g].scale)), sums[r]);
        }
    }
    UNROLL for (int r = 0; r < count; r++) out[r] = sums[r];
}

INLINE void products_int4(const Weight *weight, int64_t tile, const Group *const *rows, const int count, int64_t next, vf *out) {
    const int64_t groups = round_up(weight->inputs, GROUP) / GROUP;
    const uint8_t *quants = weight->quants + tile * groups * (SLICES / 2) * BYTES_OF_SLICE;
    const int64_t ahead = next * groups * (SLICES / 2) * BYTES_OF_SLICE; /* bytes */
    const uint16_t *scales = weight->scales + tile * groups * TILE, *mins = weight->mins + tile * groups * TILE;
    vf sums[ROWS];
    UNROLL for (int r = 0; r < count; r++) sums[r] = vf_set1(0);
    for (int64_t g = 0; g < groups; g++) {
        if (next) fetch_slices(quants + ahead + g * (SLICES / 2) * BYTES_OF_SLICE, SLICES / 2);
        vi dots[ROWS];
        UNROLL for (int r = 0; r < count; r++) dots[r] = vi_zero();
        UNROLL for (int s = 0; s < SLICES / 2; s++) { /* slice s in the low halves of the bytes, s + 4 in the high ones */
            const vb both = vb_load(quants + (g * SLICES / 2 + s) * BYTES_OF_SLICE);
            const vb low = vb_low(both), high = vb_high(both);
            UNROLL for (int r = 0; r < count; r++) {
                const int8_t *activations = rows[r][g].quants + s * SLICE;
                dots[r] = vi_dot4(vi_dot4(dots[r], low, activations), high, activations + GROUP / 2);
            }
        }
        const vf scale = vf_from_half(scales + g * TILE), min = vf_from_half(mins + g * TILE);
        UNROLL for (int r = 0; r < count; r++) { /* w . a = scale * (u . a) + min * sum(a) */
            const float a = rows[r][g].scale;
            sums[r] = vf_fma(vf_from_int(dots[r]), vf_mul(scale, vf_set1(a)), sums[r]);
            sums[r] = vf_fma(min, vf_set1(a * (float)rows[r][g].sum), sums[r]);
        }
    }
    UNROLL for (int r = 0; r < count; r++) out[r] = sums[r];
}

#define PRODUCTS(n)                                                                                                   \
    case n:                                                                                                            \
        weight->bits == 8 ? products_int8(weight, tile, rows, n, next, out)                                           \
                          : products_int4(weight, tile, rows, n, next, out);                                          \
        break;

/* out[r] = the tile's 16 outputs for row r, for up to ROWS rows; meanwhile the weights of the tile `next` tiles further on
 * are brought nearer, unless that is 0. */
static void products(const Weight *weight, int64_t tile, const Group *const *rows, int count, int64_t next, vf *out) {
    switch (count) { COUNTS(PRODUCTS) }
}
