/* Causal attention over the paged cache, tile by tile (https://arxiv.org/abs/2205.14135); included once for each
 * instruction set.
 *
 * A query meets its keys in the order of their positions, in tiles and spans that begin at fixed positions, and what it
 * keeps of them is its own: so its result is the same bits whichever rows are computed beside it.
 */

static int64_t queries_of(const Item *item) { return item->unit->heads * item->queries; }

/* The tile at `places`; what is read after it is at `next`, where the first head is another if the unit is. */
static void open_tile(Item *item, const Places *places, const Places *next, int64_t next_head) {
    const Pages *pages = item->call->pages;
    const int64_t head = item->unit->head * item->dim, size = KEYS * item->width;
    const Slab keys = {pages->keys + head, places}, values = {pages->values + head, places};
    const Slab next_keys = {pages->keys + next_head * item->dim, next};
    const Slab next_values = {pages->values + next_head * item->dim, next};
    item->keys = item->copies ? (Slab){item->copies, &item->copied} : keys;
    item->values = item->copies ? (Slab){item->copies + size, &item->copied} : values;
    item->beside_keys = item->copies ? next_keys : values;
    item->beside_values = item->copies ? next_values : next_keys;
    if (!item->copies) return;
    copy_tile(item, &keys, item->copies);
    copy_tile(item, &values, item->copies + size);
}

/* The item's queries over the keys from first to last, which are within one span. */
static void attend_span(Item *item, int64_t first, int64_t last) {
    for (int64_t n = 0; n < queries_of(item); n++) begin_state(item->states + n * state_size(item->dim), item->width);
    Places places[2]; /* of this tile and the next, in turn */
    int turn = 0;
    item->position = first / KEYS * KEYS;
    find_tile(item->call, item->unit, item->position, &places[turn]);
    for (; item->position < last; item->position += KEYS, turn = !turn) {
        const Range keys = {within_tile(first - item->position), within_tile(last - item->position)};
        const int64_t after = item->position + KEYS;
        const Unit *then = after < item->unit->last ? item->unit : item->next;
        find_tile(item->call, then, after < item->unit->last ? after : then->first / KEYS * KEYS, &places[!turn]);
        open_tile(item, &places[turn], &places[!turn], then->head);
        score(item, keys);
        weigh_all(item);
        add(item, keys);
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

static void scale_queries(const Item *item) {
    const Heads *heads = &item->call->heads;
    const vf scale = vf_set1(1 / sqrtf((float)item->dim));
    for (int64_t n = 0; n < item->unit->heads * item->room; n++) {
        const int64_t query = n % item->room < item->queries ? n % item->room : item->queries - 1;
        const int64_t row = item->unit->row + query / item->group;
        const int64_t head = (item->unit->head + n / item->room) * item->group + query % item->group;
        const float *from = heads->q + row * heads->q_stride + head * item->dim;
        for (int64_t d = 0; d < item->width; d += TILE) {
            vf_store(item->scaled + n * item->width + d, vf_mul(load_padded(from, d, item->dim), scale));
        }
    }
}

static void attend(const AttentionCall *call, const Unit *unit, const Unit *next) {
    const int64_t dim = call->heads.head_dim, width = round_up(dim, TILE);
    const int64_t group = call->heads.num_heads / call->heads.num_kv_heads, queries = unit->rows * group;
    const int64_t room = round_up(queries, FOUR), copied = unit->rows > 1 || dim % TILE;
    float scaled[unit->heads * room * width + TILE], scores[unit->heads * room * KEYS + TILE];
    float copies[copied * 2 * KEYS * width + TILE];
    Item item = {.call = call,
                 .unit = unit,
                 .next = next,
                 .group = group,
                 .dim = dim,
                 .width = width,
                 .queries = queries,
                 .room = room,
                 .scaled = aligned(scaled),
                 .scores = (Scores *)aligned(scores),
                 .copies = copied ? aligned(copies) : NULL};
    for (int n = 0; n < KEYS; n++) item.copied.at[n] = n * width;
    scale_queries(&item);
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
    for (int64_t n = first; n < last; n++) attend(call, &call->units[n], &call->units[n + 1 < last ? n + 1 : n]);
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
