/* out = x times weight transposed; included once for each instruction set. */

static void linear_quantise(const void *arguments, int64_t first, int64_t last) {
    const LinearCall *call = arguments;
    const int64_t inputs = call->weight->inputs;
    for (int64_t t = first; t < last; t++) quantise_row(call->x + t * inputs, inputs, &call->rows, t);
}

static void linear_tiles(const void *arguments, int64_t first, int64_t last) {
    const LinearCall *call = arguments;
    const int64_t outputs = call->weight->outputs, terms = call->rows.terms, all = call->tokens * terms;
    for (int64_t tile = first; tile < last; tile++) {
        for (int64_t n = 0; n < all; n += ROWS) { /* which is even: no row's terms are torn apart */
            const int count = (int)(all - n < ROWS ? all - n : ROWS);
            const Group *rows[ROWS];
            vf out[ROWS];
            for (int r = 0; r < count; r++) rows[r] = row_of(&call->rows, n + r);
            products(call->weight, tile, rows, count, 0, out);
            for (int64_t r = 0; r < count; r += terms) {
                float *to = call->out + (n + r) / terms * outputs;
                vf sum = terms == 1 ? out[r] : vf_add(out[r], out[r + 1]);
                if (call->adds) sum = vf_add(load_padded(to, tile * TILE, outputs), sum);
                store_padded(to, tile * TILE, outputs, sum);
            }
        }
    }
}

static void linear(Region *region) {
    const LinearCall *call = region->arguments;
    const int64_t tiles = round_up(call->weight->outputs, TILE) / TILE;
    pool_stage(region, 0, call->tokens, pool_chunk(call->tokens, ROWS), linear_quantise);
    pool_stage(region, 1, tiles, pool_chunk(tiles, 8), linear_tiles);
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
    pool_stage(region, 0, call->tokens, pool_chunk(call->tokens, 16), norm_rows);
}
