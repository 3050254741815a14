/* Computes products of rows of activations with one panel of 64 outputs; it is included once for each instruction set.
 *
 * A panel's memory is read once, in one direction, so the processor fetches ahead by itself. Prefetch instructions, or
 * reading two places by turns, would cost a quarter of the speed. Only more than FEW rows keep the processor too busy to
 * fetch ahead; then the next block is prefetched while this one is computed.
 *
 * Each row has sums of its own. The dot product of a group is an exact integer, and the groups are added in order. So a
 * row's result does not depend on the rows beside it.
 */

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__ /* With a number, clang would unroll only loops of that length, and leave the arrays of others in memory. */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum { SLICES = GROUP / SLICE, BYTES_OF_SLICE = TILE * SLICE, MOST_ROWS = 64 /* in a call below; it is even */ };

/* A TileProduct multiplies some cells of one tile with as many rows as there are registers for. */
typedef struct {
    const uint8_t *cells;
    int64_t count;
    const Group *const *rows;
    int64_t group; /* the rows' first group */
    int64_t ahead; /* bytes to the cells that are needed next; 0: nothing is prefetched */
    vf *sums;      /* [rows][TILES], to which this tile's products are added */
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
            UNROLL for (int s = 0; s < SLICES / 2; s++) { /* The low halves of the bytes hold slice s, the high ones s + 4. */
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

/* Computes out[row][tile], the panel's 64 outputs for up to MOST_ROWS rows. */
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
