/* Computes causal attention over the paged cache, tile by tile (https://arxiv.org/abs/2205.14135); it is included once
 * for each instruction set.
 *
 * A query takes its keys in the order of their positions, in tiles and spans that begin at fixed positions, and has a
 * state of its own. So its result has the same bits whichever rows are computed beside it.
 */

static int64_t queries_of(const UnitWork *work) { return work->unit->heads * work->queries; }

/* Opens the tile at `offsets`. The tile after it is at `next`; if it belongs to another unit, its first head differs. */
static void open_tile(UnitWork *work, const Offsets *offsets, const Offsets *next, int64_t next_head) {
    const Pages *pages = work->call->pages;
    const int64_t head = work->unit->head * work->dim, size = KEYS * work->width;
    const Slab keys = {pages->keys + head, offsets}, values = {pages->values + head, offsets};
    const Slab next_keys = {pages->keys + next_head * work->dim, next};
    const Slab next_values = {pages->values + next_head * work->dim, next};
    work->keys = work->copies ? (Slab){work->copies, &work->copied} : keys;
    work->values = work->copies ? (Slab){work->copies + size, &work->copied} : values;
    work->beside_keys = work->copies ? next_keys : values;
    work->beside_values = work->copies ? next_values : next_keys;
    if (!work->copies) return;
    copy_tile(work, &keys, work->copies);
    copy_tile(work, &values, work->copies + size);
}

/* Takes the unit's queries over the keys from first to last, which are within one span. */
static void attend_span(UnitWork *work, int64_t first, int64_t last) {
    for (int64_t n = 0; n < queries_of(work); n++) begin_state(work->states + n * state_size(work->dim), work->width);
    Offsets offsets[2]; /* This tile's and the next one's take turns. */
    int turn = 0;
    work->position = first / KEYS * KEYS;
    find_tile(work->call, work->unit, work->position, &offsets[turn]);
    for (; work->position < last; work->position += KEYS, turn = !turn) {
        const Range keys = {within_tile(first - work->position), within_tile(last - work->position)};
        const int64_t after = work->position + KEYS;
        const Unit *then = after < work->unit->last ? work->unit : work->next;
        find_tile(work->call, then, after < work->unit->last ? after : then->first / KEYS * KEYS, &offsets[!turn]);
        open_tile(work, &offsets[turn], &offsets[!turn], then->head);
        score(work, keys);
        weigh_all(work);
        add(work, keys);
    }
}

static inline const float *sink_of(const Heads *heads, int64_t head) { return heads->sinks ? heads->sinks + head : NULL; }

/* Takes the unit's queries over all spans one by one, and merges each span's state into the totals. */
static void attend_spans(UnitWork *work, float *totals) {
    const Unit *unit = work->unit;
    const int64_t queries = queries_of(work), size = state_size(work->dim), heads = work->call->heads.num_heads;
    for (int64_t n = 0; n < queries; n++) begin_state(totals + n * size, work->width);
    for (int64_t first = unit->first; first < unit->last; first = first / SPAN * SPAN + SPAN) {
        const int64_t end = first / SPAN * SPAN + SPAN;
        attend_span(work, first, end < unit->last ? end : unit->last);
        for (int64_t n = 0; n < queries; n++) merge(totals + n * size, work->states + n * size, work->width);
    }
    for (int64_t n = 0; n < queries; n++) {
        const int64_t row = unit->row + n / work->heads_per_kv % unit->rows;
        const int64_t head = (unit->head + n / work->heads_per_kv / unit->rows) * work->heads_per_kv + n % work->heads_per_kv;
        float *out = work->call->out + (row * heads + head) * work->dim;
        finish(totals + n * size, work->dim, sink_of(&work->call->heads, head), out);
    }
}

static inline float *aligned(float *p) { return (float *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

static void scale_queries(const UnitWork *work) {
    const Heads *heads = &work->call->heads;
    const vf scale = vf_set1(heads->scale);
    for (int64_t n = 0; n < work->unit->heads * work->room; n++) {
        const int64_t query = n % work->room < work->queries ? n % work->room : work->queries - 1;
        const int64_t row = work->unit->row + query / work->heads_per_kv;
        const int64_t head = (work->unit->head + n / work->room) * work->heads_per_kv + query % work->heads_per_kv;
        const float *from = heads->q + row * heads->q_stride + head * work->dim;
        for (int64_t d = 0; d < work->width; d += TILE) {
            vf_store(work->scaled + n * work->width + d, vf_mul(load_padded(from, d, work->dim), scale));
        }
    }
}

static void attend(const AttentionCall *call, const Unit *unit, const Unit *next) {
    const int64_t dim = call->heads.head_dim, width = round_up(dim, TILE);
    const int64_t heads_per_kv = call->heads.num_heads / call->heads.num_kv_heads, queries = unit->rows * heads_per_kv;
    const int64_t room = round_up(queries, FOUR), copied = unit->rows > 1 || dim % TILE;
    float scaled[unit->heads * room * width + TILE], scores[unit->heads * room * KEYS + TILE];
    float copies[copied * 2 * KEYS * width + TILE];
    UnitWork work = {.call = call,
                 .unit = unit,
                 .next = next,
                 .heads_per_kv = heads_per_kv,
                 .dim = dim,
                 .width = width,
                 .queries = queries,
                 .room = room,
                 .scaled = aligned(scaled),
                 .scores = (Scores *)aligned(scores),
                 .copies = copied ? aligned(copies) : NULL};
    for (int n = 0; n < KEYS; n++) work.copied.at[n] = n * width;
    scale_queries(&work);
    if (unit->states) {
        work.states = unit->states;
        attend_span(&work, unit->first, unit->last);
        return;
    }
    const int64_t states = queries_of(&work) * state_size(dim);
    float kept[2 * states + TILE];
    work.states = aligned(kept);
    attend_spans(&work, work.states + states);
}

static void attention_units(const void *arguments, int64_t first, int64_t last) {
    const AttentionCall *call = arguments;
    for (int64_t n = first; n < last; n++) attend(call, &call->units[n], &call->units[n + 1 < last ? n + 1 : n]);
}

/* Merges a row's spans, if it has several. */
static void join_spans(const AttentionCall *call, int64_t row) {
    const int64_t heads = call->heads.num_heads, dim = call->heads.head_dim, size = state_size(dim);
    const Partial *partial = &call->partials[row];
    float kept[size + TILE], *state = aligned(kept);
    for (int64_t head = 0; head < heads && partial->spans; head++) {
        begin_state(state, round_up(dim, TILE));
        for (int64_t span = 0; span < partial->spans; span++) {
            merge(state, partial->states + (span * heads + head) * size, round_up(dim, TILE));
        }
        finish(state, dim, sink_of(&call->heads, head), call->out + (row * heads + head) * dim);
    }
}

static void attention_join(const void *arguments, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) join_spans(arguments, row);
}
