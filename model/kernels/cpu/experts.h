/* Computes the sparse block: norm, router, SwiGLU experts (https://arxiv.org/abs/2002.05202) and their weighted sum. It is
 * included once for each instruction set. An expert's weights are read once for all of its tokens.
 */

/* Computes the softmax over all experts, takes the top k of them, and renormalises; the lower id wins a tie. */
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

/* Returns the row of one token, a chunk of its own. */
static inline Rows token_rows(const ExpertsCall *call, int64_t token) {
    return (Rows){call->quantised.all + token * call->quantised.groups, 1, 1};
}

static void experts_route(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const Experts *experts = call->experts;
    const int64_t hidden = experts->hidden, k = experts->top_k;
    for (int64_t t = first; t < last; t++) {
        float *normed = call->normed + t * hidden;
        normalise(call->x + t * hidden, experts->norm, experts->eps, hidden, normed);
        route(experts, normed, call->ids + t * k, call->weights + t * k);
        quantise_row(experts->gate_up, normed, &call->quantised, token_rows(call, t), 0);
    }
}

static void experts_quantise(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t hidden = call->experts->hidden;
    for (int64_t t = first; t < last; t++) {
        quantise_row(call->experts->gate_up, call->x + t * hidden, &call->quantised, token_rows(call, t), 0);
    }
}

/* Sorts the pairs by counting. One thread does it, since there are few pairs; the sort is stable. */
static void experts_sort(const void *arguments, int64_t first, int64_t last) {
    (void)first, (void)last;
    const ExpertsCall *call = arguments;
    const int64_t num_experts = call->experts->num_experts;
    int64_t next[num_experts];
    for (int64_t e = 0; e <= num_experts; e++) call->starts[e] = 0;
    for (int64_t pair = 0; pair < call->num_pairs; pair++) call->starts[call->ids[pair] + 1]++;
    *call->num_active = 0;
    for (int64_t e = 0; e < num_experts; e++) {
        if (call->starts[e + 1]) call->active[(*call->num_active)++] = e;
        next[e] = call->starts[e];
        call->starts[e + 1] += call->starts[e];
    }
    for (int64_t pair = 0; pair < call->num_pairs; pair++) {
        const int64_t at = next[call->ids[pair]]++;
        call->order[at] = pair;
        call->place[pair] = at;
    }
}

/* Returns the rows of an expert's pairs in activations of the sorted pairs. */
static inline Rows expert_rows(const ExpertsCall *call, const Activations *sorted, int64_t expert) {
    const int64_t start = call->starts[expert], count = call->starts[expert + 1] - start;
    return (Rows){sorted->all + start * sorted->groups, count, chunk_for(count, 1)};
}

/* Returns the rows that an expert's gate and up are multiplied with. A single pair takes its token's row as it is. */
static inline Rows gathered_rows(const ExpertsCall *call, int64_t expert) {
    const int64_t start = call->starts[expert];
    if (call->starts[expert + 1] - start == 1) return token_rows(call, call->order[start] / call->experts->top_k);
    return expert_rows(call, &call->sorted, expert);
}

/* Copies the rows of experts that have several pairs, so that each expert's rows lie together. */
static void experts_gather(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    for (int64_t at = first; at < last; at++) {
        const int64_t pair = call->order[at], expert = call->ids[pair], start = call->starts[expert];
        if (call->starts[expert + 1] - start == 1) continue;
        int64_t stride;
        Group *to = group_of(&call->sorted, expert_rows(call, &call->sorted, expert), at - start, &stride);
        const Group *from = token_rows(call, pair / call->experts->top_k).all;
        for (int64_t g = 0; g < call->sorted.groups; g++) to[g * stride] = from[g];
    }
}

/* Clears one group of an expert's inner activations, which only pads them to whole blocks of down. */
static void clear_group(const ExpertsCall *call, int64_t expert, int64_t group) {
    const Rows rows = expert_rows(call, &call->inner, expert);
    for (int64_t row = 0; row < rows.count; row++) {
        int64_t stride;
        Group *to = group_of(&call->inner, rows, row, &stride);
        memset(to + group * stride, 0, sizeof *to);
    }
}

/* Computes one group of an expert's inner activations. A panel holds gate and up of it; their product becomes int8. */
static void inner_group(const ExpertsCall *call, int64_t expert, int64_t group) {
    const Rows all = gathered_rows(call, expert), inner = expert_rows(call, &call->inner, expert);
    for (int64_t at = 0; at < all.count;) {
        const Rows rows = rows_from(&call->quantised, all, at);
        vf out[MOST_ROWS][TILES]; /* gate, up, gate, up */
        products(&call->experts->gate_up[expert], group, rows, out);
        for (int64_t n = 0; n < rows.count; n++) {
            vf low = vf_mul(silu(out[n][0]), out[n][1]), high = vf_mul(silu(out[n][2]), out[n][3]);
            int64_t stride;
            Group *to = group_of(&call->inner, inner, at + n, &stride);
            quantise_group(&low, &high, to + group * stride);
        }
        at += rows.count;
    }
}

static void experts_inner(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t groups = call->inner.groups, computed = 2 * panels_of(call->experts->intermediate);
    for (int64_t item = first; item < last; item++) {
        (item % groups < computed ? inner_group : clear_group)(call, call->active[item / groups], item % groups);
    }
}

static void output_panel(const ExpertsCall *call, int64_t expert, int64_t panel) {
    const int64_t hidden = call->experts->hidden, start = call->starts[expert];
    const Rows all = expert_rows(call, &call->inner, expert);
    for (int64_t at = 0; at < all.count;) {
        const Rows rows = rows_from(&call->inner, all, at);
        vf out[MOST_ROWS][TILES];
        products(&call->experts->down[expert], panel, rows, out);
        for (int64_t n = 0; n < rows.count; n++) {
            float *to = call->outputs + (start + at + n) * hidden;
            for (int tile = 0; tile < TILES; tile++) store_padded(to, panel * PANEL + tile * TILE, hidden, out[n][tile]);
        }
        at += rows.count;
    }
}

static void experts_outputs(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t panels = panels_of(call->experts->hidden);
    for (int64_t item = first; item < last; item++) output_panel(call, call->active[item / panels], item % panels);
}

/* Sums in the order of a token's choices, so that the result does not depend on the rest of the batch. */
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
    const Experts *experts = call->experts;
    pool_stage(region, stage, 1, experts_sort);
    pool_stage(region, stage + 1, call->tokens > 1 ? call->num_pairs : 0, experts_gather);
    pool_stage(region, stage + 2, *call->num_active * call->inner.groups, experts_inner);
    pool_stage(region, stage + 3, *call->num_active * panels_of(experts->hidden), experts_outputs);
    pool_stage(region, stage + 4, call->tokens, experts_combine);
}

static void experts(Region *region) {
    pool_stage(region, 0, ((const ExpertsCall *)region->arguments)->tokens, experts_quantise);
    experts_after(region, 1);
}

static void experts_layer(Region *region) {
    pool_stage(region, 0, ((const ExpertsCall *)region->arguments)->tokens, experts_route);
    experts_after(region, 1);
}
