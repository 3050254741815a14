/* Does attention's work on one tile of keys: scores, weights and weighted values. It is included once for each
 * instruction set.
 *
 *     pages [position][head][D]     4 queries . 4 keys     the sums of 16 products are one register
 *                                   weights x values       a few queries by a few registers of outputs
 *
 * A single row reads its keys and values in the pages, each once and nearly in order. Several rows read them again and
 * again, so a tile is first copied: in the pages the keys of a head are so far apart that they compete for few places of
 * the processor's cache.
 */

enum { FOUR = 4, TOGETHER = 8 }; /* values of so many keys are added head by head, so that pages are read nearly in order */

/* Offsets say where the keys of a tile are, in floats from the first key on; the values have the same offsets. */
typedef struct {
    int64_t at[KEYS];
} Offsets;

/* A Slab is keys or values. Those of the tile's n-th position are at rows + offsets->at[n], head by head. */
typedef struct {
    const float *rows;
    const Offsets *offsets;
} Slab;

/* Scores are a query's scores with the keys of a tile; later the keys' weights take their place. */
typedef struct {
    float at[KEYS];
} Scores;

typedef struct {
    int first, last; /* `last` is exclusive */
} Range;

/* A Sum says what to add to the outputs of some queries of a head, which see the same keys. */
typedef struct {
    float *outputs;
    const Scores *weights;
    Range keys;
    int64_t head; /* its offset in a row of values */
    int fetches;  /* whether to prefetch what is read later */
} Sum;

typedef struct {
    const AttentionCall *call;
    const Unit *unit, *next; /* `next` is the unit that this thread takes next, or the same unit */
    int64_t heads_per_kv;        /* query heads that share a head of keys and values */
    int64_t dim, width;    /* D, and D rounded up to whole registers */
    int64_t queries, room; /* of one head, and rounded up to fours. Query n is row n / heads_per_kv, head n % heads_per_kv */
    float *scaled;         /* [heads, room, width], the queries times the scale, padded with zeros */
    Scores *scores;        /* [heads, room] */
    float *states;         /* [heads, queries], the span's */
    float *copies;         /* [2, KEYS, width], the tile's, of one head; NULL: keys and values are read in the pages */
    int64_t position;      /* the position of the tile's first key */
    Offsets copied;
    Slab keys, values;
    Slab beside_keys, beside_values; /* what is prefetched meanwhile: the same lines of what is read later */
} UnitWork;

/* Finds the offsets of a tile. After the last key that exists, its offset is repeated. */
static void find_tile(const AttentionCall *call, const Unit *unit, int64_t position, Offsets *offsets) {
    const Pass *pass = call->pass;
    const int64_t size = call->heads.num_kv_heads * call->heads.head_dim;
    const int32_t *blocks = pass->block_table + unit->sequence * pass->table_width;
    int64_t block = position / pass->block_size, offset = position % pass->block_size;
    for (int n = 0; n < KEYS; n++) {
        offsets->at[n] = (blocks[block] * pass->block_size + offset) * size;
        if (position + n + 1 >= unit->last) continue;
        if (++offset == pass->block_size) {
            offset = 0;
            block++;
        }
    }
}

/* Copies a tile's keys or values of one head. */
static void copy_tile(const UnitWork *work, const Slab *from, float *to) {
    for (int n = 0; n < KEYS; n++) {
        const float *row = from->rows + from->offsets->at[n];
        float *copy = to + n * work->width;
        for (int64_t d = 0; d < work->dim; d += TILE) vf_store(copy + d, load_padded(row, d, work->dim));
    }
}

/* Prefetches the line at p into the second-level cache. The processor itself fetches ahead only after it has seen where a
 * page begins, and its first level keeps few requests. On Zen 4, with one thread and pages of 16 KiB in random order,
 * 13 GB/s were measured without prefetches, 11 with prefetches into the first level, and 20 into the second. */
INLINE void fetch(const float *p) { __builtin_prefetch(p, 0, 2); }

/* Keys are four keys of a head, and the same lines of what is read later. */
typedef struct {
    const float *at[FOUR], *beside[FOUR];
} Keys;

INLINE Keys find_keys(const UnitWork *work, int key, int64_t head) {
    Keys keys;
    UNROLL for (int n = 0; n < FOUR; n++) {
        keys.at[n] = work->keys.rows + work->keys.offsets->at[key + n] + head;
        keys.beside[n] = work->beside_keys.rows + work->beside_keys.offsets->at[key + n] + head;
    }
    return keys;
}

/* Computes sums[4 n + r], whose floats add up to the product of query r and key first + n, for ACROSS of each. */
INLINE void multiply(const float *queries, int64_t width, const Keys *keys, const int first, const int fetches, vf *sums) {
    vf products[ACROSS][ACROSS];
    UNROLL for (int n = 0; n < ACROSS; n++) {
        UNROLL for (int r = 0; r < ACROSS; r++) products[n][r] = vf_set1(0);
    }
    for (int64_t d = 0; d < width; d += TILE) {
        vf row[ACROSS];
        UNROLL for (int n = 0; n < ACROSS; n++) {
            row[n] = vf_load(keys->at[first + n] + d);
            if (fetches) fetch(keys->beside[first + n] + d);
        }
        UNROLL for (int r = 0; r < ACROSS; r++) {
            const vf query = vf_load(queries + r * width + d);
            UNROLL for (int n = 0; n < ACROSS; n++) products[n][r] = vf_fma(query, row[n], products[n][r]);
        }
    }
    UNROLL for (int n = 0; n < ACROSS; n++) {
        UNROLL for (int r = 0; r < ACROSS; r++) sums[FOUR * n + r] = products[n][r];
    }
}

/* Computes four queries' scores with four keys. */
INLINE void score_four(const float *queries, int64_t width, const Keys *keys, Scores *scores, int key, const int fetches) {
    vf sums[FOUR * FOUR];
    UNROLL for (int n = 0; n < FOUR; n += ACROSS) {
        UNROLL for (int r = 0; r < FOUR; r += ACROSS) {
            multiply(queries + r * width, width, keys, n, fetches && r == 0, sums + FOUR * n + r);
        }
    }
    float all[TILE];
    vf_store(all, vf_sums(sums));
    UNROLL for (int r = 0; r < FOUR; r++) memcpy(scores[r].at + key, all + FOUR * r, FOUR * sizeof(float));
}

/* Computes all scores of a tile, in the order of its keys in the pages. */
static void score(const UnitWork *work, Range seen) {
    const int64_t room = work->room, width = work->width;
    for (int key = seen.first / FOUR * FOUR; key < seen.last; key += FOUR) {
        for (int64_t head = 0; head < work->unit->heads; head++) {
            const Keys keys = find_keys(work, key, head * width);
            const float *queries = work->scaled + head * room * width;
            Scores *scores = work->scores + head * room;
            score_four(queries, width, &keys, scores, key, 1);
            for (int64_t n = FOUR; n < room; n += FOUR) {
                score_four(queries + n * width, width, &keys, scores + n, key, 0);
            }
        }
    }
}

static void hide(float *scores, Range seen, float with) {
    for (int n = 0; n < seen.first; n++) scores[n] = with;
    for (int n = seen.last; n < KEYS; n++) scores[n] = with;
}

/* Turns a query's scores into e to the (score - largest so far), or 0 where it does not see the key. */
static void weigh(const UnitWork *work, float *state, float *scores, Range seen) {
    hide(scores, seen, -INFINITY);
    const vf low = vf_load(scores), high = vf_load(scores + TILE);
    const float most = vf_most(vf_max(low, high));
    if (most > state[0]) raise_to(state, most, work->width);
    const vf base = vf_set1(state[0]);
    vf_store(scores, exponential(vf_sub(low, base)));
    vf_store(scores + TILE, exponential(vf_sub(high, base)));
    hide(scores, seen, 0);
    const vf sums = vf_add(vf_load(scores), vf_load(scores + TILE));
    vf_store(sums_of(state), vf_add(vf_load(sums_of(state)), sums));
}

static inline int within_tile(int64_t at) { return at < 0 ? 0 : at > KEYS ? KEYS : (int)at; }

/* Returns the keys of the tile that a query sees. */
static Range seen_by(const UnitWork *work, int64_t query) {
    const int64_t window = work->call->pass->window;
    const int64_t own = work->unit->position + query / work->heads_per_kv - work->position;
    const Range seen = {window ? within_tile(own + 1 - window) : 0, within_tile(own + 1)};
    return seen;
}

static float *state_of(const UnitWork *work, int64_t head, int64_t query) {
    return work->states + (head * work->queries + query) * state_size(work->dim);
}

static void weigh_all(const UnitWork *work) {
    for (int64_t n = 0; n < work->queries; n++) {
        const Range seen = seen_by(work, n);
        for (int64_t head = 0; head < work->unit->heads && seen.first < seen.last; head++) {
            weigh(work, state_of(work, head, n), work->scores[head * work->room + n].at, seen);
        }
    }
}

/* Adds the weighted values of some keys, from d on, to `registers` registers of outputs of `count` queries. */
INLINE void add_block(const UnitWork *work, const Sum *sum, int64_t d, const int count, const int registers) {
    const int64_t size = state_size(work->dim);
    vf out[ACROSS][ACROSS];
    UNROLL for (int r = 0; r < count; r++) {
        UNROLL for (int n = 0; n < registers; n++) out[r][n] = vf_load(sum->outputs + r * size + d + n * TILE);
    }
    for (int key = sum->keys.first; key < sum->keys.last; key++) {
        const float *values = work->values.rows + work->values.offsets->at[key] + sum->head + d;
        const float *beside = work->beside_values.rows + work->beside_values.offsets->at[key] + sum->head + d;
        vf row[ACROSS];
        UNROLL for (int n = 0; n < registers; n++) {
            row[n] = vf_load(values + n * TILE);
            if (sum->fetches) fetch(beside + n * TILE);
        }
        UNROLL for (int r = 0; r < count; r++) {
            const vf weight = vf_set1(sum->weights[r].at[key]);
            UNROLL for (int n = 0; n < registers; n++) out[r][n] = vf_fma(weight, row[n], out[r][n]);
        }
    }
    UNROLL for (int r = 0; r < count; r++) {
        UNROLL for (int n = 0; n < registers; n++) vf_store(sum->outputs + r * size + d + n * TILE, out[r][n]);
    }
}

INLINE void add_values(const UnitWork *work, const Sum *sum, const int count) {
    int64_t d = 0;
    for (; d + ACROSS * TILE <= work->width; d += ACROSS * TILE) add_block(work, sum, d, count, ACROSS);
    for (; d < work->width; d += TILE) add_block(work, sum, d, count, 1);
}

/* Returns those of the keys that a query sees that are within `keys`. */
static Range common(Range seen, Range keys) {
    if (seen.first < keys.first) seen.first = keys.first;
    if (seen.last > keys.last) seen.last = keys.last;
    return seen;
}

/* Reads the values of a head once for ACROSS neighbouring queries, where these see the same keys. */
static void add_to_head(const UnitWork *work, int64_t head, Range keys) {
    for (int64_t n = 0; n < work->queries;) {
        const Range first = seen_by(work, n), last = seen_by(work, n + ACROSS - 1);
        const int alike = n + ACROSS <= work->queries && first.first == last.first && first.last == last.last;
        const Sum sum = {.outputs = outputs_of(state_of(work, head, n)),
                         .weights = work->scores + head * work->room + n,
                         .keys = common(first, keys),
                         .head = head * work->width,
                         .fetches = n == 0};
        alike ? add_values(work, &sum, ACROSS) : add_values(work, &sum, 1);
        n += alike ? ACROSS : 1;
    }
}

/* Adds the weighted values of those keys to the outputs of all queries. */
static void add(const UnitWork *work, Range keys) {
    const int together = work->unit->heads > 1 ? TOGETHER : KEYS;
    for (int key = keys.first / together * together; key < keys.last; key += together) {
        const Range some = {key, key + together};
        for (int64_t head = 0; head < work->unit->heads; head++) add_to_head(work, head, some);
    }
}
