/* Computes the sub-layer around attention: norm, qkv, rotary and the write to the pages before it, o after it. It is
 * included once for each instruction set. */

/* Applies rotary position embedding (https://arxiv.org/abs/2104.09864) in place; it rotates element i with i + D / 2. */
static void rotate(float *x, const float *cos, const float *sin, int64_t dim) {
    const int64_t half = dim / 2;
    for (int64_t n = 0; n < half; n += TILE) {
        const vf low = load_padded(x, n, half), high = load_padded(x + half, n, half);
        const vf turned = vf_mul(high, load_padded(cos + half, n, half));
        store_padded(x, n, half, vf_fma(high, load_padded(sin, n, half), vf_mul(low, load_padded(cos, n, half))));
        store_padded(x + half, n, half, vf_fma(low, load_padded(sin + half, n, half), turned));
    }
}

/* Normalises heads in place, each for itself or all together. */
static void normalise_heads(const Attention *layer, const float *weight, float *heads, int64_t count) {
    const int64_t all = count * layer->head_dim, size = layer->together ? all : layer->head_dim;
    for (int64_t n = 0; weight && n < all; n += size) normalise(heads + n, weight, layer->heads_eps, size, heads + n);
}

/* Does to a row's queries, keys and values what some models do before the rotation. */
static void finish_qkv(const Attention *layer, float *heads) {
    normalise_heads(layer, layer->q_norm, heads, layer->num_heads);
    normalise_heads(layer, layer->k_norm, heads + layer->num_heads * layer->head_dim, layer->num_kv_heads);
    const vf most = vf_set1(layer->clip), least = vf_set1(-layer->clip);
    const int64_t size = layer->qkv.outputs;
    for (int64_t n = 0; layer->clip > 0 && n < size; n += TILE) {
        store_padded(heads, n, size, vf_max(least, vf_min(most, load_padded(heads, n, size)))); /* A NaN stays NaN. */
    }
}

static void attention_store(const void *arguments, int64_t first, int64_t last) {
    const AttentionCall *call = arguments;
    const Heads *heads = &call->heads;
    const Rotation *rotation = call->rotation;
    const int64_t dim = heads->head_dim, kept = heads->num_kv_heads * dim;
    for (int64_t row = first; row < last; row++) {
        float *q = heads->q + row * heads->q_stride, *k = heads->k + row * heads->k_stride;
        if (call->layer) finish_qkv(call->layer, q);
        for (int64_t n = 0; rotation && n < heads->num_heads + heads->num_kv_heads; n++) {
            float *head = n < heads->num_heads ? q + n * dim : k + (n - heads->num_heads) * dim;
            rotate(head, rotation->cos + row * dim, rotation->sin + row * dim, dim);
        }
        const int64_t to = call->pass->slots[row] * kept;
        if (to < 0) continue;
        memcpy(call->pages->keys + to, k, (size_t)kept * sizeof(float));
        memcpy(call->pages->values + to, heads->v + row * heads->v_stride, (size_t)kept * sizeof(float));
    }
}

/* Runs three stages, so that every key is stored before any query reads it. */
static void attention_stages(Region *region, int stage, void (*join)(const void *, int64_t, int64_t)) {
    const AttentionCall *call = region->arguments;
    const int64_t tokens = call->pass->tokens;
    pool_stage(region, stage, tokens, attention_store);
    pool_stage(region, stage + 1, call->num_units, attention_units);
    pool_stage(region, stage + 2, tokens, join);
}

static void attention(Region *region) { attention_stages(region, 0, attention_join); }

static void attention_norm(const void *arguments, int64_t first, int64_t last) {
    const AttentionCall *call = arguments;
    const Attention *layer = call->layer;
    const int64_t hidden = layer->qkv.inputs;
    float normed[hidden];
    for (int64_t row = first; row < last; row++) {
        normalise(call->x + row * hidden, layer->norm, layer->eps, hidden, normed);
        quantise_row(&layer->qkv, normed, &call->qkv.quantised, linear_rows(&call->qkv), row);
    }
}

static void attention_qkv(const void *arguments, int64_t first, int64_t last) {
    linear_panels(&((const AttentionCall *)arguments)->qkv, first, last);
}

static void attention_join_layer(const void *arguments, int64_t first, int64_t last) {
    attention_join(arguments, first, last);
    linear_quantise(&((const AttentionCall *)arguments)->o, first, last);
}

static void attention_o(const void *arguments, int64_t first, int64_t last) {
    linear_panels(&((const AttentionCall *)arguments)->o, first, last);
}

static void attention_layer(Region *region) {
    const AttentionCall *call = region->arguments;
    pool_stage(region, 0, call->pass->tokens, attention_norm);
    pool_stage(region, 1, panels_of(call->layer->qkv.outputs), attention_qkv);
    attention_stages(region, 2, attention_join_layer);
    pool_stage(region, 5, panels_of(call->layer->o.outputs), attention_o);
}
