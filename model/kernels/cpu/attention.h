/* Causal attention over the paged cache, tile by tile (https://arxiv.org/abs/2205.14135); included once for each
 * instruction set.
 *
 * A query meets its keys in the order of their positions, in tiles and spans that begin at fixed positions, and what it
 * keeps of them is its own: so its result is the same bits whichever rows are computed beside it. A tile is laid out
 * once for all queries of a unit, which are the rows of a group of heads:
 *
 *     pages   [position][head][D]   ->   keys [D][32]      so that 16 scores are one register, and
 *                                        values [32][D']   so that 16 outputs are; D' is D in whole registers
 */

/* Where the keys of a tile are in the pages, in floats from the first key on; the values are in the same places. */
typedef struct {
    int64_t at[KEYS];
} Places;

/* A query's scores with the keys of a tile, and which of them it sees. */
typedef struct {
    float at[KEYS];
} Scores;

typedef struct {
    int first, last; /* exclusive */
} Range;

typedef struct {
    const AttentionCall *call;
    const Unit *unit;
    int64_t group;        /* query heads that share a head of keys and values */
    int64_t dim, width;   /* D and D' */
    float *keys, *values; /* of the tile and of one head */
    float *states;        /* [heads, queries] of the span; query n is row n / group, head n % group */
    int64_t position;     /* of the tile's first key */
    int64_t head;         /* of the unit's, in the tile */
    const Places *next;   /* what to bring nearer while the tile is worked on, or NULL; with the head's place added: */
    int64_t next_head;
} Item;

/* Behind the last key that there is, that one's place again. */
static void find_tile(const Item *item, int64_t position, Places *places) {
    const Step *step = item->call->step;
    const int64_t size = item->call->heads.num_kv_heads * item->dim;
    const int32_t *blocks = step->block_table + item->unit->sequence * step->table_width;
    int64_t block = position / step->block_size, offset = position % step->block_size;
    for (int n = 0; n < KEYS; n++) {
        places->at[n] = (blocks[block] * step->block_size + offset) * size;
        if (position + n + 1 >= item->unit->last) continue;
        if (++offset == step->block_size) {
            offset = 0;
            block++;
        }
    }
}

static void lay_out_tile(const Item *item, const Places *places) {
    const int64_t head = (item->unit->head + item->head) * item->dim;
    const float *keys = item->call->pages->keys + head, *values = item->call->pages->values + head;
    for (int64_t d = 0; d < item->dim; d += TILE) {
        for (int half = 0; half < KEYS; half += TILE) {
            vf rows[TILE];
            UNROLL_ALL for (int n = 0; n < TILE; n++) {
                rows[n] = load_padded(keys + places->at[half + n], d, item->dim);
            }
            vf_transpose(rows);
            for (int n = 0; n < TILE && d + n < item->dim; n++) vf_store(item->keys + (d + n) * KEYS + half, rows[n]);
        }
    }
    for (int n = 0; n < KEYS; n++) {
        float *to = item->values + n * item->width;
        for (int64_t d = 0; d < item->dim; d += TILE) {
            vf_store(to + d, load_padded(values + places->at[n], d, item->dim));
        }
    }
}

/* The n-th 64 bytes of the next tile. A processor drops what it is asked to fetch while it waits for as much as it can:
 * so a tile's two times 2 D lines are asked for one by one, in the two times 2 D steps of the work on the one before. */
INLINE void fetch(const Item *item, const float *pages, int64_t n) {
    if (item->next) __builtin_prefetch(pages + item->next->at[n % KEYS] + item->next_head + n / KEYS * TILE);
}

INLINE void score_half(const Item *item, const float *const *queries, int half, Scores *scores, const int count) {
    vf sums[ROWS];
    UNROLL for (int r = 0; r < count; r++) sums[r] = vf_set1(0);
    for (int64_t d = 0; d < item->dim; d++) {
        const vf key = vf_load(item->keys + d * KEYS + half);
        fetch(item, item->call->pages->keys, d * (KEYS / TILE) + half / TILE);
        UNROLL for (int r = 0; r < count; r++) sums[r] = vf_fma(vf_set1(queries[r][d]), key, sums[r]);
    }
    UNROLL for (int r = 0; r < count; r++) vf_store(scores[r].at + half, sums[r]);
}

#define SCORES(n) case n: score_half(item, queries, half, scores, n); break;

/* scores[r] = the products of query r with the tile's keys. */
static void score(const Item *item, const float *const *queries, int count, Scores *scores) {
    for (int half = 0; half < KEYS; half += TILE) {
        switch (count) { COUNTS(SCORES) }
    }
}

static void hide(float *scores, Range seen, float with) {
    for (int n = 0; n < seen.first; n++) scores[n] = with;
    for (int n = seen.last; n < KEYS; n++) scores[n] = with;
}

/* Turns a query's scores into e to the (score - largest so far), or 0 where it does not see the key. */
static void weigh(const Item *item, float *state, float *scores, Range seen) {
    const vf scale = vf_set1(1 / sqrtf((float)item->dim));
    hide(scores, seen, -INFINITY);
    const vf low = vf_mul(vf_load(scores), scale), high = vf_mul(vf_load(scores + TILE), scale);
    const float most = vf_most(vf_max(low, high));
    if (most > state[0]) raise_to(state, most, item->width);
    const vf base = vf_set1(state[0]);
    vf_store(scores, exponential(vf_sub(low, base)));
    vf_store(scores + TILE, exponential(vf_sub(high, base)));
    hide(scores, seen, 0);
    const vf sums = vf_add(vf_load(scores), vf_load(scores + TILE));
    vf_store(sums_of(state), vf_add(vf_load(sums_of(state)), sums));
}

INLINE void add_values(const Item *item, float *states, const Scores *weights, Range keys, const int count) {
    const int64_t size = state_size(item->dim);
    for (int64_t d = 0; d < item->width; d += TILE) {
        vf out[ROWS];
        UNROLL for (int r = 0; r < count; r++) out[r] = vf_load(outputs_of(states + r * size) + d);
        for (int n = keys.first; n < keys.last; n++) {
            const vf value = vf_load(item->values + n * item->width + d);
            fetch(item, item->call->pages->values, d / TILE * KEYS + n);
            UNROLL for (int r = 0; r < count; r++) out[r] = vf_fma(vf_set1(weights[r].at[n]), value, out[r]);
        }
        UNROLL for (int r = 0; r < count; r++) vf_store(outputs_of(states + r * size) + d, out[r]);
    }
}

#define VALUES(n) case n: add_values(item, states, weights, keys, n); break;

static void add_weighted(const Item *item, float *states, const Scores *weights, Range keys, int count) {
    switch (count) { COUNTS(VALUES) }
}

static inline int within_tile(int64_t at) { return at < 0 ? 0 : at > KEYS ? KEYS : (int)at; }

/* The keys of the tile that a row of the unit sees. */
static Range seen_by(const Item *item, int64_t row) {
    const int64_t window = item->call->step->window, own = item->unit->position + row - item->position;
    const Range seen = {window ? within_tile(own + 1 - window) : 0, within_tile(own + 1)};
    return seen;
}

/* Up to ROWS queries over the tile. Where all of them see the same keys, which is everywhere but at the ends of what
 * they see, the values are read once for all. */
static void attend_tile(const Item *item, int64_t query, int count) {
    const Heads *heads = &item->call->heads;
    const int64_t size = state_size(item->dim);
    const int64_t before = item->head * item->unit->rows * item->group; /* queries of earlier heads */
    const float *queries[ROWS];
    float *states = item->states + (before + query) * size;
    Scores scores[ROWS];
    Range seen[ROWS];
    int alike = 1, any = 0;
    for (int r = 0; r < count; r++) {
        const int64_t row = (query + r) / item->group, of = (query + r) % item->group;
        const int64_t head = (item->unit->head + item->head) * item->group + of;
        queries[r] = heads->q + (item->unit->row + row) * heads->q_stride + head * item->dim;
        seen[r] = seen_by(item, row);
        alike &= seen[r].first == seen[0].first && seen[r].last == seen[0].last;
        any |= seen[r].first < seen[r].last;
    }
    if (!any) return;
    score(item, queries, count, scores);
    for (int r = 0; r < count; r++) {
        if (seen[r].first < seen[r].last) weigh(item, states + r * size, scores[r].at, seen[r]);
    }
    const int together = alike ? count : 1;
    for (int r = 0; r < count; r += together) add_weighted(item, states + r * size, scores + r, seen[r], together);
}

static int64_t queries_of(const Item *item) { return item->unit->heads * item->unit->rows * item->group; }

/* All queries of the unit over the tile and one head of it. */
static void attend_head(Item *item, const Places *places) {
    const int64_t queries = item->unit->rows * item->group;
    lay_out_tile(item, places);
    for (int64_t n = 0; n < queries; n += ROWS) {
        attend_tile(item, n, (int)(queries - n < ROWS ? queries - n : ROWS));
        item->next = NULL;
    }
}

/* The item's queries over the keys from first to last, which are within one span. */
static void attend_span(Item *item, int64_t first, int64_t last) {
    const Unit *unit = item->unit;
    for (int64_t n = 0; n < queries_of(item); n++) begin_state(item->states + n * state_size(item->dim), item->width);
    Places places[2]; /* of this tile and the next, in turn */
    int turn = 0;
    item->position = first / KEYS * KEYS;
    find_tile(item, item->position, &places[turn]);
    for (; item->position < last; item->position += KEYS, turn = !turn) {
        const int64_t after = item->position + KEYS;
        if (after < unit->last) find_tile(item, after, &places[!turn]);
        for (item->head = 0; item->head < unit->heads; item->head++) {
            const int ends = item->head + 1 == unit->heads;
            item->next = !ends ? &places[turn] : after < unit->last ? &places[!turn] : NULL;
            item->next_head = (unit->head + (ends ? 0 : item->head + 1)) * item->dim;
            attend_head(item, &places[turn]);
        }
    }
}

/* All spans of the item one by one, put together as they come. */
static void attend_spans(Item *item, float *totals) {
    const Unit *unit = item->unit;
    const int64_t queries = queries_of(item), size = state_size(item->dim), heads = item->call->heads.num_heads;
    for (int64_t n = 0; n < queries; n++) begin_state(totals + n * size, item->width);
    for (int64_t first = unit->first; first < unit->last; first = first / SPAN * SPAN + SPAN) {
        const int64_t end = first / SPAN * SPAN + SPAN;
        attend_span(item, first, end < unit->last ? end : unit->last);
        for (int64_t n = 0; n < queries; n++) merge(totals + n * size, item->states + n * size, item->width);
    }
    for (int64_t n = 0; n < queries; n++) {
        const int64_t row = unit->row + n / item->group % unit->rows;
        const int64_t head = (unit->head + n / item->group / unit->rows) * item->group + n % item->group;
        finish(totals + n * size, item->dim, item->call->out + (row * heads + head) * item->dim);
    }
}

static inline float *aligned(float *p) { return (float *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

static void attend(const AttentionCall *call, const Unit *unit) {
    const int64_t dim = call->heads.head_dim, width = round_up(dim, TILE);
    float tile[KEYS * (dim + width) + TILE], *keys = aligned(tile);
    Item item = {.call = call,
                 .unit = unit,
                 .group = call->heads.num_heads / call->heads.num_kv_heads,
                 .dim = dim,
                 .width = width,
                 .keys = keys,
                 .values = keys + KEYS * dim};
    if (unit->states) {
        item.states = unit->states;
        attend_span(&item, unit->first, unit->last);
        return;
    }
    const int64_t states = queries_of(&item) * state_size(dim);
    float kept[2 * states + TILE];
    item.states = aligned(kept);
    attend_spans(&item, item.states + states);
}

static void attention_units(const void *arguments, int64_t first, int64_t last) {
    const AttentionCall *call = arguments;
    for (int64_t n = first; n < last; n++) attend(call, &call->units[n]);
}

/* Puts a row's spans together, if it was left in several. */
static void join_spans(const AttentionCall *call, int64_t row) {
    const int64_t heads = call->heads.num_heads, dim = call->heads.head_dim, size = state_size(dim);
    const Partial *partial = &call->partials[row];
    float kept[size + TILE], *state = aligned(kept);
    for (int64_t head = 0; head < heads && partial->spans; head++) {
        begin_state(state, round_up(dim, TILE));
        for (int64_t span = 0; span < partial->spans; span++) {
            merge(state, partial->states + (span * heads + head) * size, round_up(dim, TILE));
        }
        finish(state, dim, call->out + (row * heads + head) * dim);
    }
}

static void attention_join(const void *arguments, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) join_spans(arguments, row);
}
