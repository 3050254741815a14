/* Computes the experts of the sparse block (SwiGLU, https://arxiv.org/abs/2002.05202) and their weighted sum. It is included
 * once for each instruction set. An expert's weights are read once for all of its tokens.
 */

static void experts_quantise(const void *arguments, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++) quantise_token(arguments, t);
}

/* Says whether an expert's rows are put together: it has several, or takes the inputs in an order of its own. */
static inline int is_gathered(const ExpertsCall *call, int64_t expert) {
    return call->starts[expert + 1] - call->starts[expert] > 1 || call->experts->gate_up[expert].order;
}

/* Sorts the pairs by counting. One thread does it, since there are few pairs; the sort is stable. */
static void experts_sort(const void *arguments, int64_t first, int64_t last) {
    (void)first, (void)last;
    const ExpertsCall *call = arguments;
    const int64_t num_experts = call->experts->num_experts;
    int64_t next[num_experts];
    for (int64_t e = 0; e <= num_experts; e++) call->starts[e] = 0;
    for (int64_t pair = 0; pair < call->num_pairs; pair++) call->starts[call->ids[pair] + 1]++;
    *call->num_active = *call->num_gathered = 0;
    for (int64_t e = 0; e < num_experts; e++) {
        if (call->starts[e + 1]) call->active[(*call->num_active)++] = e;
        next[e] = call->starts[e];
        call->starts[e + 1] += call->starts[e];
        if (next[e] < call->starts[e + 1] && is_gathered(call, e)) *call->num_gathered = call->num_pairs;
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

/* Returns the rows that an expert's gate and up are multiplied with. A single pair can take its token's row as it is. */
static inline Rows gathered_rows(const ExpertsCall *call, int64_t expert) {
    if (is_gathered(call, expert)) return expert_rows(call, &call->sorted, expert);
    return token_rows(call, call->order[call->starts[expert]] / call->experts->top_k);
}

/* Copies a pair's row to the others of its expert. */
static void gather_row(const ExpertsCall *call, int64_t token, Rows rows, int64_t row) {
    int64_t stride;
    Group *to = group_of(&call->sorted, rows, row, &stride);
    const Group *from = token_rows(call, token).all;
    for (int64_t g = 0; g < call->sorted.groups; g++) to[g * stride] = from[g];
}

/* Puts the rows of each expert together. In an order of its own, the inputs fall into other groups, which are quantised anew. */
static void experts_gather(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const Experts *experts = call->experts;
    for (int64_t at = first; at < last; at++) {
        const int64_t pair = call->order[at], expert = call->ids[pair], token = pair / experts->top_k;
        const Weight *weight = &experts->gate_up[expert];
        const Rows rows = expert_rows(call, &call->sorted, expert);
        const int64_t row = at - call->starts[expert];
        if (weight->order) {
            quantise_row(weight, call->inputs + token * experts->hidden, &call->sorted, rows, row);
        } else if (is_gathered(call, expert)) {
            gather_row(call, token, rows, row);
        }
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

/* Adds an expert's biases to one panel, in which tiles of gate and up alternate. */
static inline void add_biases(const Experts *experts, int64_t expert, int64_t group, vf *panel) {
    const int64_t size = experts->intermediate;
    const float *gate = experts->gate_up_bias + expert * 2 * size, *up = gate + size;
    for (int tile = 0; tile < TILES; tile++) {
        panel[tile] = vf_add(panel[tile], load_padded(tile % 2 ? up : gate, group * GROUP + tile / 2 * TILE, size));
    }
}

/* Computes 16 inner activations of an expert. A NaN stays NaN: given a NaN and a number, min and max return their second
 * argument. Without a limit, the limit is infinite. */
static inline vf swiglu(const Experts *experts, vf gate, vf up) {
    const vf limit = vf_set1(experts->limit), least = vf_set1(-experts->limit);
    const vf g = vf_min(limit, gate), u = vf_max(least, vf_min(limit, up));
    const vf power = exponential(vf_mul(g, vf_set1(-experts->alpha)));
    return vf_mul(vf_div(g, vf_add(vf_set1(1.0f), power)), vf_add(u, vf_set1(experts->shift)));
}

/* Computes one group of an expert's inner activations. A panel holds gate and up of it; their product becomes int8. */
static void inner_group(const ExpertsCall *call, int64_t expert, int64_t group) {
    const Experts *experts = call->experts;
    const Rows all = gathered_rows(call, expert), inner = expert_rows(call, &call->inner, expert);
    for (int64_t at = 0; at < all.count;) {
        const Rows rows = rows_from(&call->quantised, all, at);
        vf out[MOST_ROWS][TILES]; /* gate, up, gate, up */
        products(&experts->gate_up[expert], group, rows, out);
        for (int64_t n = 0; n < rows.count; n++) {
            if (experts->gate_up_bias) add_biases(experts, expert, group, out[n]);
            vf low = swiglu(experts, out[n][0], out[n][1]), high = swiglu(experts, out[n][2], out[n][3]);
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
    const Experts *experts = call->experts;
    const int64_t hidden = experts->hidden, start = call->starts[expert];
    const float *bias = experts->down_bias ? experts->down_bias + expert * hidden : NULL;
    const Rows all = expert_rows(call, &call->inner, expert);
    for (int64_t at = 0; at < all.count;) {
        const Rows rows = rows_from(&call->inner, all, at);
        vf out[MOST_ROWS][TILES];
        products(&experts->down[expert], panel, rows, out);
        for (int64_t n = 0; n < rows.count; n++) {
            float *to = call->outputs + (start + at + n) * hidden;
            for (int tile = 0; tile < TILES; tile++) {
                const int64_t output = panel * PANEL + tile * TILE;
                if (bias) out[n][tile] = vf_add(out[n][tile], load_padded(bias, output, hidden));
                store_padded(to, output, hidden, out[n][tile]);
            }
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
    pool_stage(region, stage + 1, *call->num_gathered, experts_gather);
    pool_stage(region, stage + 2, *call->num_active * call->inner.groups, experts_inner);
    pool_stage(region, stage + 3, *call->num_active * panels_of(experts->hidden), experts_outputs);
    pool_stage(region, stage + 4, call->tokens, experts_combine);
}

static void experts(Region *region) {
    pool_stage(region, 0, ((const ExpertsCall *)region->arguments)->tokens, experts_quantise);
    experts_after(region, 1);
}

static void experts_layer(Region *region) {
    route(region);
    experts_after(region, ROUTER_STAGES);
}
