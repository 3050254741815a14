/* Products of rows of activations with one panel of 64 outputs; included once for each instruction set.
 *
 * A panel's memory is read once, in one direction: a processor that sees the next address coming fetches it unasked. To
 * ask for it, or to read two places by turns, costs a quarter of the speed. Only more than FEW rows keep a processor too
 * busy to look ahead: then it is asked for the next part while it works on this one.
 *
 * Each row has sums of its own, to which the groups are added in order, the dot product of a group being an exact
 * integer: so a row's result does not depend on the rows beside it.
 */

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__ /* it takes a number for the very number of turns, and leaves loops of fewer, and arrays in memory */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum { SLICES = GROUP / SLICE, BYTES_OF_SLICE = TILE * SLICE, MOST_ROWS = 64 /* of a call below; even */ };

/* Some cells of one tile, against as many rows as there are registers for. */
typedef struct {
    const uint8_t *cells;
    int64_t count;
    const Group *const *rows;
    int64_t group; /* of the rows: the first */
    int64_t ahead; /* bytes to what is wanted next; 0: nothing is asked for */
    vf *sums;      /* [rows][TILES] of this tile, to which all is added */
} TileProduct;

INLINE void fetch_cell(const uint8_t *from, const int64_t bytes) {
    for (int64_t n = 0; n < bytes; n += 64) __builtin_prefetch(from + n, 0, 2);
}

INLINE void add_int8(const TileProduct *product, const int count) {
    vf sums[ROWS_AT_ONCE];
    UNROLL for (int r = 0; r < count; r++) sums[r] = product->sums[r * TILES];
    const uint8_t *scales = product->cells;
    for (int64_t g = product->group; g < product->group + 2 * product->count; g += 2, scales += bytes_of_cell(8)) {
        if (product->ahead) fetch_cell(scales + product->ahead, bytes_of_cell(8));
        UNROLL for (int half = 0; half < 2; half++) {
            const uint8_t *quants = scales + NUMBERS + half * SLICES * BYTES_OF_SLICE;
            vi dots[ROWS_AT_ONCE];
            UNROLL for (int r = 0; r < count; r++) dots[r] = vi_begin8(product->rows[r][g + half].sum);
            UNROLL for (int s = 0; s < SLICES; s++) {
                const vb weights = vb_load(quants + s * BYTES_OF_SLICE);
                UNROLL for (int r = 0; r < count; r++) {
                    dots[r] = vi_dot8(dots[r], weights, product->rows[r][g + half].quants + s * SLICE);
                }
            }
            const vf scale = vf_from_half((const uint16_t *)scales + half * TILE);
            UNROLL for (int r = 0; r < count; r++) {
                sums[r] = vf_fma(vf_from_int(dots[r]), vf_mul(scale, vf_set1(product->rows[r][g + half].scale)), sums[r]);
            }
        }
    }
    UNROLL for (int r = 0; r < count; r++) product->sums[r * TILES] = sums[r];
}

INLINE void add_int4(const TileProduct *product, const int count) {
    vf sums[ROWS_AT_ONCE];
    UNROLL for (int r = 0; r < count; r++) sums[r] = product->sums[r * TILES];
    const uint8_t *scales = product->cells;
    for (int64_t g = product->group; g < product->group + 2 * product->count; g += 2, scales += bytes_of_cell(4)) {
        if (product->ahead) fetch_cell(scales + product->ahead, bytes_of_cell(4));
        UNROLL for (int half = 0; half < 2; half++) {
            const uint8_t *quants = scales + 2 * NUMBERS + half * (SLICES / 2) * BYTES_OF_SLICE;
            vi dots[ROWS_AT_ONCE];
            UNROLL for (int r = 0; r < count; r++) dots[r] = vi_zero();
            UNROLL for (int s = 0; s < SLICES / 2; s++) { /* slice s in the low halves of the bytes, s + 4 in the high */
                const vb both = vb_load(quants + s * BYTES_OF_SLICE);
                const vb low = vb_low(both), high = vb_high(both);
                UNROLL for (int r = 0; r < count; r++) {
                    const int8_t *activations = product->rows[r][g + half].quants + s * SLICE;
                    dots[r] = vi_dot4(vi_dot4(dots[r], low, activations), high, activations + GROUP / 2);
                }
            }
            const vf scale = vf_from_half((const uint16_t *)scales + half * TILE);
            const vf min = vf_from_half((const uint16_t *)(scales + NUMBERS) + half * TILE);
            UNROLL for (int r = 0; r < count; r++) { /* w . a = scale * (u . a) + min * sum(a) */
                const Group *row = &product->rows[r][g + half];
                sums[r] = vf_fma(vf_from_int(dots[r]), vf_mul(scale, vf_set1(row->scale)), sums[r]);
                sums[r] = vf_fma(min, vf_set1(row->scale * (float)row->sum), sums[r]);
            }
        }
    }
    UNROLL for (int r = 0; r < count; r++) product->sums[r * TILES] = sums[r];
}

#define ADD(n)                                                                                                        \
    case n:                                                                                                            \
        bits == 8 ? add_int8(product, n) : add_int4(product, n);                                                            \
        break;

static void add_tile(const TileProduct *product, int64_t bits, int64_t rows) {
    switch (rows) { COUNTS(ADD) }
}

/* out[row][tile] = the panel's 64 outputs for up to MOST_ROWS rows. */
static void products(const Weight *weight, int64_t panel, const Group *const *rows, int64_t count, vf (*out)[TILES]) {
    const int64_t groups = groups_of(weight->inputs), block = weight->block * bytes_of_cell(weight->bits);
    const uint8_t *cells = weight->cells + panel * TILES * (groups / 2) * bytes_of_cell(weight->bits);
    for (int64_t n = 0; n < count; n++) {
        for (int tile = 0; tile < TILES; tile++) out[n][tile] = vf_set1(0);
    }
    for (int64_t group = 0; group < groups; group += 2 * weight->block) {
        for (int tile = 0; tile < TILES; tile++, cells += block) {
            for (int64_t n = 0; n < count; n += ROWS_AT_ONCE) {
                const int64_t ahead = count > FEW && n == 0 ? block : 0;
                const TileProduct product = {cells, weight->block, rows + n, group, ahead, &out[n][tile]};
                add_tile(&product, weight->bits, count - n < ROWS_AT_ONCE ? count - n : ROWS_AT_ONCE);
            }
        }
    }
}
