/* Causal attention over the paged cache, with a softmax that runs along the keys (https://arxiv.org/abs/2205.14135);
 * included once for each instruction set.
 *
 * A query meets its keys in the order of their positions, in tiles and spans that begin at fixed positions, and what it
 * keeps of them is its own: so its result is the same bits whichever rows are computed beside it. A tile is laid out once
 * for all queries of a unit, which are the rows of a group of heads:
 *
 *     pages   [position][head][D]   ->   keys [D][32]      so that 16 scores are one register, and
 *                                        values [32][D']   so that 16 outputs are; D' is D in whole registers
 */

/* Where the keys of a tile are in the pages, in floats from the first key on; the values are in the same places. */
typedef struct {
    int64_t at[KEYS];
} Places;

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

/* The state of a running softmax: see state_size. Sums and outputs are relative to e to the largest score. */
static inline float *sums_of(float *state) { return state + TILE; }
static inline float *outputs_of(float *state) { return state + 2 * TILE; }

static void begin_state(float *state, int64_t width) {
    state[0] = -INFINITY;
    for (int64_t n = TILE; n < 2 * TILE + width; n += TILE) vf_store(state + n, vf_set1(0));
}

/* Scores so far are to be relative to e to the `most`. */
static void raise_to(float *state, float most, int64_t width) {
    const vf factor = exponential(vf_set1(state[0] - most));
    for (int64_t n = TILE; n < 2 * TILE + width; n += TILE) vf_store(state + n, vf_mul(vf_load(state + n), factor));
    state[0] = most;
}

/* Adds what was kept of a later span. One of which the query saw nothing has no sum; any other has one of 1 at least. */
static void merge(float *state, const float *later, int64_t width) {
    if (sum_of(vf_load(later + TILE)) == 0) return;
    if (later[0] > state[0]) raise_to(state, later[0], width);
    const vf factor = exponential(vf_set1(later[0] - state[0]));
    for (int64_t n = TILE; n < 2 * TILE + width; n += TILE) {
        vf_store(state + n, vf_fma(vf_load(later + n), factor, vf_load(state + n)));
    }
}

static void finish(float *state, int64_t dim, float *out) {
    const float sum = sum_of(vf_load(sums_of(state)));
    const vf share = vf_set1(sum == 0 ? 0 : 1 / sum); /* a row of padding sees nothing, and gets zeros */
    for (int64_t n = 0; n < dim; n += TILE) store_padded(out, n, dim, vf_mul(vf_load(outputs_of(state) + n), share));
}

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
            UNROLL_ALL for (int n = 0; n < TILE; n++) rows[n] = load_padded(keys + places->at[half + n], d, item->dim);
            vf_transpose(rows);
            for (int n = 0; n < TILE && d + n < item->dim; n++) vf_store(item->keys + (d + n) * KEYS + half, rows[n]);
        }
    }
    for (int n = 0; n < KEYS; n++) {
        float *to = item->values + n * item->width;
        for (int64_t d = 0; d < item->dim; d += TILE) vf_store(to + d, load_padded(values + places->at[n], d, item->dim));
    }
}

/* The n-th 64 bytes of the next tile. A processor drops what it is asked to fetch while it waits for as much as it can:
 * so a tile's two times 2 D lines are asked for one by one, in the two times 2 D steps of the work on the tile before. */
INLINE void fetch(const Item *item, const float *pages, int64_t n) {
    if (item->next) __builtin_prefetch(pages + item->next->at[n % KEYS] + item->next_head + n / KEYS * TILE);
}

INLINE void score_half(const Item *item, const float *const *queries, int half, float (*scores)[KEYS], const int count) {
    vf sums[ROWS];
    UNROLL for (int r = 0; r < count; r++) sums[r] = vf_set1(0);
    for (int64_t d = 0; d < item->dim; d++) {
        const vf key = vf_load(item->keys + d * KEYS + half);
        fetch(item, item->call->pages->keys, d * (KEYS / TILE) + half / TILE);
        UNROLL for (int r = 0; r < count; r++) sums[r] = vf_fma(vf_set1(queries[r][d]), key, sums[r]);
    }
    UNROLL for (int r = 0; r < count; r++) vf_store(scores[r] + half, sums[r]);
}

#define SCORES(n) case n: score_half(item, queries, half, scores, n); break;

/* scores[r] = the products of query r with the tile's keys. */
static void score(const Item *item, const float *const *queries, int count, float (*scores)[KEYS]) {
    for (int half = 0; half < KEYS; half += TILE) {
        switch (count) { COUNTS(SCORES) }
    }
}

static void hide(float *scores, int first, int last, float with) {
    for (int n = 0; n < first; n++) scores[n] = with;
    for (int n = last; n < KEYS; n++) scores[n] = with;
}

/* Turns a query's scores into e to the (score - largest so far), of the keys from first to last; the others are unseen. */
static void weigh(const Item *item, float *state, float *scores, int first, int last) {
    const vf scale = vf_set1(1 / sqrtf((float)item->dim));
    hide(scores, first, last, -INFINITY);
    const vf low = vf_mul(vf_load(scores), scale), high = vf_mul(vf_load(scores + TILE), scale);
    const float most = vf_most(vf_max(low, high));
    if (most > state[0]) raise_to(state, most, item->width);
    const vf base = vf_set1(state[0]);
    vf_store(scores, exponential(vf_sub(low, base)));
    vf_store(scores + TILE, exponential(vf_sub(high, base)));
    hide(scores, first, last, 0);
    const vf sums = vf_add(vf_load(scores), vf_load(scores + TILE));
    vf_store(sums_of(state), vf_add(vf_load(sums_of(state)), sums));
}

INLINE void add_values(const Item *item, float *states, const float (*weights)[KEYS], int first, int last, const int count) {
    const int64_t size = state_size(item->dim);
    for (int64_t d = 0; d < item->width; d += TILE) {
        vf out[ROWS];
        UNROLL for (int r = 0; r < count; r++) out[r] = vf_load(outputs_of(states + r * size) + d);
        for (int n = first; n < last; n++) {
            const vf value = vf_load(item->values + n * item->width + d);
            fetch(item, item->call->pages->values, d / TILE * KEYS + n);
            UNROLL for (int r = 0; r < count; r++) out[r] = vf_fma(vf_set1(weights[r][n]), value, out[r]);
        }
        UNROLL for (int r = 0; r < count; r++) vf_store(outputs_of(states + r * size) + d, out[r]);
    }
}

#define VALUES(n) case n: add_values(item, states, weights, first, last, n); break;

static void add_weighted(const Item *item, float *states, const float (*weights)[KEYS], int first, int last, int count) {
    switch (count) { COUNTS(VALUES) }
}

static inline int within_tile(int64_t at) { return at < 0 ? 0 : at > KEYS ? KEYS : (int)at; }

/* Up to ROWS queries over the tile. A query's own keys are from first to last: where
 * all queries have the same, which is everywhere but at the ends of what they see, the values are read once for all. */
static void attend_tile(const Item *item, int64_t query, int count) {
    const Heads *heads = &item->call->heads;
    const int64_t window = item->call->step->window, size = state_size(item->dim);
    const float *queries[ROWS];
    const int64_t before = item->head * item->unit->rows * item->group; /* queries of earlier heads */
    float scores[ROWS][KEYS], *states = item->states + (before + query) * size;
    int first[ROWS], last[ROWS], alike = 1, seen = 0;
    for (int r = 0; r < count; r++) {
        const int64_t row = (query + r) / item->group, of = (query + r) % item->group;
        const int64_t own = item->unit->position + row - item->position;
        queries[r] = heads->q + (item->unit->row + row) * heads->q_stride + ((item->unit->head + item->head) * item->group + of) * item->dim;
        first[r] = window ? within_tile(own + 1 - window) : 0;
        last[r] = within_tile(own + 1);
        alike &= first[r] == first[0] && last[r] == last[0];
        seen |= first[r] < last[r];
    }
    if (!seen) return;
    score(item, queries, count, scores);
    for (int r = 0; r < count; r++) {
        if (first[r] < last[r]) weigh(item, states + r * size, scores[r], first[r], last[r]);
    }
    if (alike) {
        add_weighted(item, states, (const float(*)[KEYS])scores, first[0], last[0], count);
        return;
    }
    for (int r = 0; r < count; r++) {
        add_weighted(item, states + r * size, (const float(*)[KEYS])scores + r, first[r], last[r], 1);
    }
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
    Item item = {call, unit, call->heads.num_heads / call->heads.num_kv_heads, dim, width, keys, keys + KEYS * dim, NULL, 0, 0, NULL, 0};
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

/* Rotary position embedding (https://arxiv.org/abs/2104.09864) of pairs (i, i + D / 2), in place. */
static void rotate(float *x, const float *cos, const float *sin, int64_t dim) {
    const int64_t half = dim / 2;
    for (int64_t n = 0; n < half; n += TILE) {
        const vf low = load_padded(x, n, half), high = load_padded(x + half, n, half);
        const vf turned = vf_mul(high, load_padded(cos + half, n, half));
        store_padded(x, n, half, vf_fma(high, load_padded(sin, n, half), vf_mul(low, load_padded(cos, n, half))));
        store_padded(x + half, n, half, vf_fma(low, load_padded(sin + half, n, half), turned));
    }
}

static void attention_store(const void *arguments, int64_t first, int64_t last) {
    const AttentionCall *call = arguments;
    const Heads *heads = &call->heads;
    const Rotation *rotation = call->rotation;
    const int64_t dim = heads->head_dim, kept = heads->num_kv_heads * dim;
    for (int64_t row = first; row < last; row++) {
        float *q = heads->q + row * heads->q_stride, *k = heads->k + row * heads->k_stride;
        for (int64_t n = 0; rotation && n < heads->num_heads + heads->num_kv_heads; n++) {
            float *head = n < heads->num_heads ? q + n * dim : k + (n - heads->num_heads) * dim;
            rotate(head, rotation->cos + row * dim, rotation->sin + row * dim, dim);
        }
        const int64_t to = call->step->slots[row] * kept;
        if (to < 0) continue;
        memcpy(call->pages->keys + to, k, (size_t)kept * sizeof(float));
        memcpy(call->pages->values + to, heads->v + row * heads->v_stride, (size_t)kept * sizeof(float));
    }
}

/* Three stages: every key is stored before any query looks for it. */
static void attention_stages(Region *region, int stage, void (*join)(const void *, int64_t, int64_t)) {
    const AttentionCall *call = region->arguments;
    const int64_t tokens = call->step->tokens;
    pool_stage(region, stage, tokens, pool_chunk(tokens, 16), attention_store);
    pool_stage(region, stage + 1, call->num_units, 1, attention_units);
    pool_stage(region, stage + 2, tokens, pool_chunk(tokens, 16), join);
}

static void attention(Region *region) { attention_stages(region, 0, attention_join); }

static void attention_norm(const void *arguments, int64_t first, int64_t last) {
    const AttentionCall *call = arguments;
    const Attention *layer = call->layer;
    const int64_t hidden = layer->qkv.inputs;
    float normed[hidden];
    for (int64_t row = first; row < last; row++) {
        normalise(call->x + row * hidden, layer->norm, layer->eps, hidden, normed);
        quantise_row(normed, hidden, &call->qkv.rows, row);
    }
}

static void attention_qkv(const void *arguments, int64_t first, int64_t last) {
    linear_tiles(&((const AttentionCall *)arguments)->qkv, first, last);
}

static void attention_join_layer(const void *arguments, int64_t first, int64_t last) {
    attention_join(arguments, first, last);
    linear_quantise(&((const AttentionCall *)arguments)->o, first, last);
}

static void attention_o(const void *arguments, int64_t first, int64_t last) {
    linear_tiles(&((const AttentionCall *)arguments)->o, first, last);
}

static void attention_layer(Region *region) {
    const AttentionCall *call = region->arguments;
    const int64_t tokens = call->step->tokens;
    const int64_t qkv = round_up(call->layer->qkv.outputs, TILE) / TILE, o = round_up(call->layer->o.outputs, TILE) / TILE;
    pool_stage(region, 0, tokens, pool_chunk(tokens, ROWS), attention_norm);
    pool_stage(region, 1, qkv, pool_chunk(qkv, 8), attention_qkv);
    attention_stages(region, 2, attention_join_layer);
    pool_stage(region, 5, o, pool_chunk(o, 8), attention_o);
}
