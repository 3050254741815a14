/* Computes out = x times weight transposed; it is included once for each instruction set. */

/* Returns the rows of the call's activations, the terms of a row one after the other. */
static inline Rows linear_rows(const LinearCall *call) {
    const int64_t terms = call->quantised.terms, count = call->tokens * terms;
    return (Rows){call->quantised.all, count, chunk_for(count, terms)};
}

static void linear_quantise(const void *arguments, int64_t first, int64_t last) {
    const LinearCall *call = arguments;
    for (int64_t t = first; t < last; t++) {
        quantise_row(call->weight, call->x + t * call->weight->inputs, &call->quantised, linear_rows(call), t);
    }
}

/* Stores one panel of some rows of out. The products of a row's terms are neighbours. */
static void linear_store(const LinearCall *call, int64_t row, int64_t count, int64_t panel, vf (*products)[TILES]) {
    const int64_t outputs = call->weight->outputs, terms = call->quantised.terms;
    for (int64_t n = 0; n < count; n++) {
        float *to = call->out + (row + n) * outputs;
        for (int tile = 0; tile < TILES; tile++) {
            const int64_t at = panel * PANEL + tile * TILE;
            vf sum = products[n * terms][tile];
            if (terms == 2) sum = vf_add(sum, products[n * terms + 1][tile]);
            if (call->bias) sum = vf_add(sum, load_padded(call->bias, at, outputs));
            if (call->share != 0) sum = vf_fma(sum, vf_set1(call->share), load_padded(to, at, outputs));
            store_padded(to, at, outputs, sum);
        }
    }
}

static void linear_panels(const void *arguments, int64_t first, int64_t last) {
    const LinearCall *call = arguments;
    const Rows all = linear_rows(call);
    for (int64_t panel = first; panel < last; panel++) {
        for (int64_t at = 0; at < all.count;) {
            const Rows rows = rows_from(&call->quantised, all, at);
            vf out[MOST_ROWS][TILES];
            products(call->weight, panel, rows, out);
            linear_store(call, at / call->quantised.terms, rows.count / call->quantised.terms, panel, out);
            at += rows.count;
        }
    }
}

static void linear(Region *region) {
    const LinearCall *call = region->arguments;
    pool_stage(region, 0, call->tokens, linear_quantise);
    pool_stage(region, 1, panels_of(call->weight->outputs), linear_panels);
}

static void norm_rows(const void *arguments, int64_t first, int64_t last) {
    const NormCall *call = arguments;
    const int64_t hidden = call->hidden;
    for (int64_t t = first; t < last; t++) {
        normalise(call->x + t * hidden, call->weight, call->eps, hidden, call->out + t * hidden);
    }
}

static void rms_norm(Region *region) {
    const NormCall *call = region->arguments;
    pool_stage(region, 0, call->tokens, norm_rows);
}
