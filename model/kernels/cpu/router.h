/* Computes what comes before the experts: norm, router and its choice. It is included once for each instruction set.
 *
 * The router is in float32, and large where there are many experts. So all threads share its experts, and read its rows once
 * for several tokens. Each score has a sum of its own, so it does not depend on the tokens and experts beside it.
 */

enum { ROUTER_STAGES = 3, SCORED = 4 /* experts that are scored at once */, SCORED_TOKENS = 32 /* that stay in a cache */ };

/* Returns the row of one token, a chunk of its own. */
static inline Rows token_rows(const ExpertsCall *call, int64_t token) {
    return (Rows){call->quantised.all + token * call->quantised.groups, 1, 1};
}

/* Quantises a token's row. */
static void quantise_token(const ExpertsCall *call, int64_t token) {
    const Weight in_order = {.inputs = call->experts->hidden};
    quantise_row(&in_order, call->inputs + token * in_order.inputs, &call->quantised, token_rows(call, token), 0);
}

static void router_norm(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const Experts *experts = call->experts;
    const int64_t hidden = experts->hidden;
    for (int64_t t = first; t < last; t++) {
        normalise(call->x + t * hidden, experts->norm, experts->eps, hidden, call->normed + t * hidden);
        quantise_token(call, t);
    }
}

/* Computes the dot products of x and SCORED rows, each as `dot` does. */
static void dots(const float *x, const float *rows, int64_t size, float *out) {
    vf sums[SCORED];
    for (int row = 0; row < SCORED; row++) sums[row] = vf_set1(0);
    for (int64_t n = 0; n < size; n += TILE) {
        const vf part = load_padded(x, n, size);
        UNROLL for (int row = 0; row < SCORED; row++) {
            sums[row] = vf_fma(part, load_padded(rows + row * size, n, size), sums[row]);
        }
    }
    for (int row = 0; row < SCORED; row++) out[row] = sum_of(sums[row]);
}

static int64_t scored_parts(const Experts *experts) { return (experts->num_experts + SCORED - 1) / SCORED; }

/* Scores a few experts for some tokens. */
static void score_part(const ExpertsCall *call, int64_t part, int64_t first, int64_t last) {
    const Experts *experts = call->experts;
    const int64_t hidden = experts->hidden, expert = part * SCORED, left = experts->num_experts - expert;
    const float *rows = experts->router + expert * hidden;
    for (int64_t t = first; t < last; t++) {
        const float *x = call->normed + t * hidden;
        float *scores = call->scores + t * experts->num_experts + expert;
        if (left >= SCORED) {
            dots(x, rows, hidden, scores);
        } else {
            for (int64_t n = 0; n < left; n++) scores[n] = dot(x, rows + n * hidden, hidden);
        }
        for (int64_t n = 0; n < left && n < SCORED && experts->router_bias; n++) scores[n] += experts->router_bias[expert + n];
    }
}

static void router_score(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const int64_t parts = scored_parts(call->experts);
    for (int64_t item = first; item < last; item++) {
        const int64_t token = item / parts * SCORED_TOKENS, left = call->tokens - token;
        score_part(call, item % parts, token, token + (left < SCORED_TOKENS ? left : SCORED_TOKENS));
    }
}

/* Takes the top k experts of a softmax over all, and clears their scores; the lower id wins a tie. */
static void choose(const Experts *experts, float *scores, int64_t *ids, float *weights) {
    const int64_t count = experts->num_experts, k = experts->top_k;
    float most = -INFINITY, all = 0, chosen = 0;
    for (int64_t e = 0; e < count; e++) most = scores[e] > most ? scores[e] : most;
    for (int64_t e = 0; e < count && !experts->normalises; e++) all += expf(scores[e] - most);
    for (int64_t choice = 0; choice < k; choice++) {
        int64_t best = 0;
        for (int64_t e = 1; e < count; e++) best = scores[e] > scores[best] ? e : best;
        ids[choice] = best;
        weights[choice] = expf(scores[best] - most);
        chosen += weights[choice];
        scores[best] = -INFINITY;
    }
    const float sum = experts->normalises ? chosen : all;
    for (int64_t choice = 0; choice < k; choice++) weights[choice] = weights[choice] / sum * experts->scale;
}

static void router_choose(const void *arguments, int64_t first, int64_t last) {
    const ExpertsCall *call = arguments;
    const Experts *experts = call->experts;
    for (int64_t t = first; t < last; t++) {
        int64_t *ids = call->ids + t * experts->top_k;
        float *weights = call->weights + t * experts->top_k;
        if (experts->router) {
            choose(experts, call->scores + t * experts->num_experts, ids, weights);
        } else {
            ids[0] = 0;
            weights[0] = experts->scale;
        }
    }
}

static void route(Region *region) {
    const ExpertsCall *call = region->arguments;
    const int64_t chunks = (call->tokens + SCORED_TOKENS - 1) / SCORED_TOKENS;
    pool_stage(region, 0, call->tokens, router_norm);
    pool_stage(region, 1, call->experts->router ? chunks * scored_parts(call->experts) : 0, router_score);
    pool_stage(region, 2, call->tokens, router_choose);
}
