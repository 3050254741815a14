/* Computes products of rows of activations with one panel of 64 outputs; it is included once for each instruction set.
 *
 * A panel's memory is read once, in one direction; reading two places by turns would cost a quarter of the speed. All of it is
 * prefetched, AHEAD bytes before it is needed: a processor that multiplies does not look as far ahead by itself. The numbers
 * of a block count most, since everything waits for them.
 *
 * Each row has sums of its own. The dot product of a group is an exact integer, and the groups are added in order. So a
 * row's result does not depend on the rows beside it.
 */

enum { AHEAD = 4096, SLICES = GROUP / SLICE, BYTES_OF_SLICE = TILE * SLICE, MOST_ROWS = 64 /* in a call below; it is even */ };

/* A Bytes says how codes become the bytes that are multiplied: a byte is the code's value plus a bias. */
typedef struct {
    int packed;       /* whether two codes of 4 bits share a byte */
    int narrow;       /* whether the bytes are less than 64, where that is faster */
    int32_t bias;     /* 128 if they are not narrow */
    uint8_t table[16]; /* the byte of each code of 4 bits */
} Bytes;

/* A TileProduct multiplies a block of one tile with a chunk of rows. */
typedef struct {
    const uint8_t *codes;
    const Numbers *numbers;
    const Bytes *bytes;
    const Group *rows; /* the chunk's, from the block's first group on: [groups][count] */
    int64_t groups;    /* of the block */
    int64_t ahead;     /* bytes to what is prefetched; 0: nothing is */
    vf *sums;          /* [count][TILES], to which this tile's products are added */
} TileProduct;

static Bytes bytes_of(const Kind *kind) {
    Bytes out = {.packed = kind->bits == 4, .bias = 128};
    int least = kind->values[0], most = kind->values[0];
    for (int n = 1; n < 16; n++) {
        least = kind->values[n] < least ? kind->values[n] : least;
        most = kind->values[n] > most ? kind->values[n] : most;
    }
    out.narrow = NARROW && kind->bits == 4 && most - least < 64;
    if (out.narrow) out.bias = -least;
    for (int n = 0; n < 16; n++) out.table[n] = (uint8_t)(kind->values[n] + out.bias);
    return out;
}

/* Takes the two slices that lie in 64 bytes of codes of 4 bits: slice s in the low halves, s + 4 in the high ones. */
INLINE void take_slices(const uint8_t *codes, const vb table, vb *low, vb *high) {
    const vb both = vb_load(codes);
    *low = vb_lookup(table, vb_low(both));
    *high = vb_lookup(table, vb_high(both));
}

INLINE void fetch_bytes(const uint8_t *from, const int64_t bytes) {
    for (int64_t n = 0; n < bytes; n += 64) __builtin_prefetch(from + n, 0, 2);
}

/* Adds the products of one chunk; the constants are the four words of which every kind consists. */
INLINE void add_products(const TileProduct *product, const int packed, const int narrow, const int moves, const int count) {
    const int64_t bytes = (packed ? SLICES / 2 : SLICES) * BYTES_OF_SLICE;
    const vb table = vb_table(product->bytes->table);
    const uint8_t *codes = product->codes;
    const Group *rows = product->rows;
    vf sums[ROWS_AT_ONCE];
    UNROLL for (int r = 0; r < count; r++) sums[r] = product->sums[r * TILES];
    for (int64_t g = 0; g < product->groups; g++, codes += bytes, rows += count) {
        if (product->ahead) fetch_bytes(codes + product->ahead, bytes);
        vi dots[ROWS_AT_ONCE];
        UNROLL for (int r = 0; r < count; r++) {
            dots[r] = narrow ? vi_set1(rows[r].lift / 128 * product->bytes->bias) : vi_begin(&rows[r].lift);
        }
        UNROLL for (int s = 0; s < SLICES / 2; s++) {
            const int first = packed ? s : 2 * s, second = packed ? s + SLICES / 2 : 2 * s + 1;
            vb low, high;
            if (packed) {
                take_slices(codes + s * BYTES_OF_SLICE, table, &low, &high);
            } else {
                low = vb_load(codes + first * BYTES_OF_SLICE);
                high = vb_load(codes + second * BYTES_OF_SLICE);
            }
            UNROLL for (int r = 0; r < count; r++) {
                const int8_t *quants = rows[r].quants;
                dots[r] = vi_dots(dots[r], low, quants + first * SLICE, high, quants + second * SLICE, narrow);
            }
        }
        const vf scale = vf_load(product->numbers->scales[g]), minimum = vf_load(product->numbers->minima[g]);
        UNROLL for (int r = 0; r < count; r++) { /* w . a = scale * (value . a) + minimum * sum(a) */
            sums[r] = vf_fma(vf_from_int(dots[r]), vf_mul(scale, vf_set1(rows[r].scale)), sums[r]);
            if (moves) sums[r] = vf_fma(minimum, vf_set1(rows[r].total), sums[r]);
        }
    }
    UNROLL for (int r = 0; r < count; r++) product->sums[r * TILES] = sums[r];
}

#define ADD(n)                                                                                                        \
    case n:                                                                                                            \
        add_products(product, packed, narrow, moves, n);                                                               \
        break;

INLINE void add_rows(const TileProduct *product, const int packed, const int narrow, const int moves, int64_t count) {
    switch (count) { COUNTS(ADD) }
}

static void add_chunk(const TileProduct *product, int moves, int64_t count) {
    switch (product->bytes->packed * 4 + (NARROW && product->bytes->narrow) * 2 + moves) {
    case 0: add_rows(product, 0, 0, 0, count); break;
    case 1: add_rows(product, 0, 0, 1, count); break;
    case 4: add_rows(product, 1, 0, 0, count); break;
    case 5: add_rows(product, 1, 0, 1, count); break;
#if NARROW
    case 2: add_rows(product, 0, 1, 0, count); break;
    case 3: add_rows(product, 0, 1, 1, count); break;
    case 6: add_rows(product, 1, 1, 0, count); break;
    case 7: add_rows(product, 1, 1, 1, count); break;
#endif
    }
}

/* Takes a block's codes of 4 bits apart, once for many rows. */
static void unpack(TileProduct *product, Bytes *bytes, uint8_t *to) {
    const vb table = vb_table(bytes->table);
    for (int64_t n = 0; n < product->groups * SLICES / 2; n++) {
        vb low, high;
        take_slices(product->codes + n * BYTES_OF_SLICE, table, &low, &high);
        uint8_t *slices = to + (n / 4 * SLICES + n % 4) * BYTES_OF_SLICE;
        vb_store(slices, low);
        vb_store(slices + SLICES / 2 * BYTES_OF_SLICE, high);
    }
    product->codes = to;
    bytes->packed = 0;
}

/* Adds the products of one block of a tile with all rows. */
static void add_tile_block(const Weight *weight, TileProduct *product, Bytes bytes, const Rows *rows, int64_t group) {
    uint8_t unpacked[BLOCK * TILE];
    const int64_t groups = groups_of(weight);
    vf *sums = product->sums;
    product->bytes = &bytes;
    product->ahead = AHEAD;
    if (bytes.packed && rows->count > rows->chunk) {
        fetch_bytes(product->codes + AHEAD, product->groups * GROUP * TILE / 2);
        unpack(product, &bytes, unpacked);
        product->ahead = 0;
    }
    for (int64_t first = 0; first < rows->count; first += rows->chunk) {
        const int64_t count = rows->count - first < rows->chunk ? rows->count - first : rows->chunk;
        product->rows = rows->all + first * groups + group * count;
        product->sums = sums + first * TILES;
        add_chunk(product, weight->kind.offset != OFFSET_NONE, count);
        product->ahead = 0;
    }
}

/* Computes out[row][tile], the panel's 64 outputs for up to MOST_ROWS rows. */
static void products(const Weight *weight, int64_t panel, Rows rows, vf (*out)[TILES]) {
    const BlockLayout at = layout_of(weight);
    const Bytes bytes = bytes_of(&weight->kind);
    const int64_t groups = weight->block / GROUP;
    const uint8_t *header = panel_of(weight, panel), *block = header + header_of(weight);
    for (int64_t n = 0; n < rows.count; n++) {
        for (int tile = 0; tile < TILES; tile++) out[n][tile] = vf_set1(0);
    }
    for (int64_t group = 0; group < groups_of(weight); group += groups) {
        for (int tile = 0; tile < TILES; tile++, block += at.bytes) {
            Numbers numbers;
            fetch_bytes(block + AHEAD, at.codes);
            read_numbers(weight, &at, header + tile * TILE * sizeof(float), block, &numbers);
            TileProduct product = {.codes = block + at.codes, .numbers = &numbers, .groups = groups, .sums = &out[0][tile]};
            add_tile_block(weight, &product, bytes, &rows, group);
        }
    }
}

/* Returns as many whole chunks of the rows, from `first` on, as `products` takes. */
static inline Rows rows_from(const Activations *activations, Rows rows, int64_t first) {
    const int64_t most = MOST_ROWS / rows.chunk * rows.chunk, left = rows.count - first;
    return (Rows){rows.all + first * activations->groups, left < most ? left : most, rows.chunk};
}
