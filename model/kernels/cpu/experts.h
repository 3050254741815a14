/* The sparse block: norm, router, SwiGLU experts (https://arxiv.org/abs/2002.05202), weighted sum; included once for each
 * instruction set. The tokens of an expert share one pass over its weights.
 */

/* Softmax over all experts, the top k of them, renormalised; the lower id wins a tie. */
static void route(const Experts *experts, const float *x, int64_t *ids, float *weights) {
    if (experts->router == NULL) {
        ids[0] = 0;
        weights[0] = 1;
        return;
    }
    float scores[experts->num_experts], most = -INFINITY, sum = 0;
    for (int64_t e = 0; e < experts->num_experts; e++) {
        scores[e] = dot(x, experts->router + e * experts->hidden, experts->hidden);
        most = scores[e] > most ? scores[e] : most;
    }
    for (int64_t choice = 0; choice < experts->top_k; choice++) {
        int64_t best = 0;
        for (int64_t e = 1; e < experts->num_experts; e++) best = scores[e] > scores[best] ? e : best;
        ids[choice] = best;
        weights[choice] = expf(scores[best] - most);
        sum += weights[choice];
        scores[best] = -INFINITY;
    }
    for (int64_t choice = 0; choice < experts->top_k; choice++) weights[choice] /= sum;
}

static void experts_route(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const Experts *experts = call->experts;
    const int64_t hidden = experts->hidden, k = experts->top_k;
    for (int64_t t = first; t < last; t++) {
        float *normed = call->normed + t * hidden;
        normalise(call->x + t * hidden, experts->norm, experts->eps, hidden, normed);
        route(experts, normed, call->ids + t * k, call->weights + t * k);
        quantise_row(normed, hidden, &call->rows, t);
    }
}

static void experts_quantise(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t hidden = call->experts->hidden;
    for (int64_t t = first; t < last; t++) quantise_row(call->x + t * hidden, hidden, &call->rows, t);
}

/* A counting sort, by one thread: there are few pairs, and the sort is stable. */
static void experts_sort(const void *arguments, int64_t first, int64_t last) {
    (void)first, (void)last;
    const ExpertsCall *call = arguments;
    const int64_t num_experts = call->experts->num_experts;
    int64_t next[num_experts];
    for (int64_t e = 0; e <= num_experts; e++) call->starts[e] = 0;
    for (int64_t pair = 0; pair < call->pairs; pair++) call->starts[call->ids[pair] + 1]++;
    *call->num_active = 0;
    for (int64_t e = 0; e < num_experts; e++) {
        if (call->starts[e + 1]) call->active[(*call->num_active)++] = e;
        next[e] = call->starts[e];
        call->starts[e + 1] += call->starts[e];
    }
    for (int64_t pair = 0; pair < call->pairs; pair++) {
        const int64_t at = next[call->ids[pair]]++;
        call->order[at] = pair;
        call->place[pair] = at;
    }
}

/* While the last rows of an expert keep the processor busy with weights that are near, the memory may bring the next ones:
 * this many tiles further on. The first rows wait for the memory as it is. */
static int64_t fetch_ahead(const ExpertsCall *call, int64_t expert, int64_t at, int64_t tiles) {
    return at > call->starts[expert] && at + ROWS >= call->starts[expert + 1] ? tiles : 0;
}

/* One item is one group of an expert's inner activations: two tiles of gate and two of up, then int8 at once. */
static void inner_group(const ExpertsCall *call, int64_t expert, int64_t group) {
    const Weight *gate_up = &call->experts->gate_up[expert];
    const int64_t end = call->starts[expert + 1];
    for (int64_t at = call->starts[expert]; at < end; at += ROWS) {
        const int count = (int)(end - at < ROWS ? end - at : ROWS);
        const Group *rows[ROWS];
        vf gate[ROWS], up[ROWS], half[2][ROWS];
        const int64_t next = group + 1 < call->inner.groups ? fetch_ahead(call, expert, at, 4) : 0;
        for (int r = 0; r < count; r++) rows[r] = row_of(&call->rows, call->order[at + r] / call->experts->top_k);
        for (int h = 0; h < 2; h++) {
            products(gate_up, group * 4 + h * 2, rows, count, next, gate);
            products(gate_up, group * 4 + h * 2 + 1, rows, count, next, up);
            for (int r = 0; r < count; r++) half[h][r] = vf_mul(silu(gate[r]), up[r]);
        }
        for (int r = 0; r < count; r++) {
            quantise_group(&half[0][r], &half[1][r], row_of(&call->inner, at + r) + group);
        }
    }
}

static void experts_inner(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t groups = call->inner.groups;
    for (int64_t item = first; item < last; item++) inner_group(call, call->active[item / groups], item % groups);
}

static void output_tile(const ExpertsCall *call, int64_t expert, int64_t tile) {
    const int64_t end = call->starts[expert + 1], hidden = call->experts->hidden;
    for (int64_t at = call->starts[expert]; at < end; at += ROWS) {
        const int count = (int)(end - at < ROWS ? end - at : ROWS);
        const Group *rows[ROWS];
        vf out[ROWS];
        for (int r = 0; r < count; r++) rows[r] = row_of(&call->inner, at + r);
        const int64_t next = (tile + 1) * TILE < hidden ? fetch_ahead(call, expert, at, 1) : 0;
        products(&call->experts->down[expert], tile, rows, count, next, out);
        for (int r = 0; r < count; r++) store_padded(call->outputs + (at + r) * hidden, tile * TILE, hidden, out[r]);
    }
}

static void experts_outputs(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t tiles = round_up(call->experts->hidden, TILE) / TILE;
    for (int64_t item = first; item < last; item++) output_tile(call, call->active[item / tiles], item % tiles);
}

/* In the order of a token's choices, whoever else is in the batch. */
static void experts_combine(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t hidden = call->experts->hidden, k = call->experts->top_k;
    for (int64_t t = first; t < last; t++) {
        float *out = call->out + t * hidden;
        for (int64_t n = 0; n < hidden; n += TILE) {
            vf sum = vf_set1(0);
            for (int64_t pair = t * k; pair < (t + 1) * k; pair++) {
                const float *output = call->outputs + call->place[pair] * hidden;
                sum = vf_fma(vf_set1(call->weights[pair]), load_padded(output, n, hidden), sum);
            }
            store_padded(out, n, hidden, call->adds ? vf_add(load_padded(out, n, hidden), sum) : sum);
        }
    }
}

static void experts_after(Region *region, int stage) {
    const ExpertsCall *call = region->arguments;
    pool_stage(region, stage, 1, 1, experts_sort);
    const int64_t groups = *call->num_active * call->inner.groups;
    pool_stage(region, stage + 1, groups, pool_chunk(groups, 4), experts_inner);
    const int64_t tiles = *call->num_active * (round_up(call->experts->hidden, TILE) / TILE);
    pool_stage(region, stage + 2, tiles, pool_chunk(tiles, 4), experts_outputs);
    pool_stage(region, stage + 3, call->tokens, pool_chunk(call->tokens, 16), experts_combine);
}

static void experts(Region *region) {
    const ExpertsCall *call = region->arguments;
    pool_stage(region, 0, call->tokens, pool_chunk(call->tokens, ROWS), experts_quantise);
    experts_after(region, 1);
}

static void experts_layer(Region *region) {
    const ExpertsCall *call = region->arguments;
    pool_stage(region, 0, call->tokens, pool_chunk(call->tokens, ROWS), experts_route);
    experts_after(region, 1);
}
