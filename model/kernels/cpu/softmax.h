/* Computes a softmax along the keys as they come (https://arxiv.org/abs/1805.02867); it is included once for each
 * instruction set.
 *
 * Its state is state_size(D) floats: the largest score so far and room to align the rest, 16 sums, and the outputs. Sums
 * and outputs are divided by e to the largest score.
 */

static inline float *sums_of(float *state) { return state + TILE; }
static inline float *outputs_of(float *state) { return state + 2 * TILE; }

static void begin_state(float *state, int64_t width) {
    state[0] = -INFINITY;
    for (int64_t n = TILE; n < 2 * TILE + width; n += TILE) vf_store(state + n, vf_set1(0));
}

/* Makes `most` the largest score, and rescales sums and outputs. */
static void raise_to(float *state, float most, int64_t width) {
    const vf factor = exponential(vf_set1(state[0] - most));
    for (int64_t n = TILE; n < 2 * TILE + width; n += TILE) vf_store(state + n, vf_mul(vf_load(state + n), factor));
    state[0] = most;
}

/* Adds the state of later keys. If they were none at all, their sum is 0; otherwise it is at least 1. */
static void merge(float *state, const float *later, int64_t width) {
    if (later[0] == -INFINITY && sum_of(vf_load(later + TILE)) == 0) return;
    if (later[0] > state[0]) raise_to(state, later[0], width);
    const vf factor = exponential(vf_set1(later[0] - state[0]));
    for (int64_t n = TILE; n < 2 * TILE + width; n += TILE) {
        vf_store(state + n, vf_fma(vf_load(later + n), factor, vf_load(state + n)));
    }
}

/* Divides the outputs by the sum of all weights. A sink (https://arxiv.org/abs/2309.17453) is a score of a key that has no
 * value: it joins the sum only. */
static void finish(float *state, int64_t dim, const float *sink, float *out) {
    const float sum = sum_of(vf_load(sums_of(state)));
    vf total = vf_set1(sum);
    if (sink) total = vf_add(total, exponential(vf_set1(*sink - state[0])));
    const vf share = sum == 0 ? vf_set1(0) : vf_div(vf_set1(1), total); /* A row of padding sees nothing, and gets zeros. */
    for (int64_t n = 0; n < dim; n += TILE) store_padded(out, n, dim, vf_mul(vf_load(outputs_of(state) + n), share));
}
