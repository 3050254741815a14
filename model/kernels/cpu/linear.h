/* out = x times weight transposed; included once for each instruction set. */

static void linear_quantise(const void *arguments, int64_t first, int64_t last) {
    const LinearCall *call = arguments;
    const int64_t inputs = call->weight->inputs;
    for (int64_t t = first; t < last; t++) quantise_row(call->x + t * inputs, inputs, &call->rows, t);
}

static void linear_tiles(const void *arguments, int64_t first, int64_t last) {
    const LinearCall *call = arguments;
    const int64_t outputs = call->weight->outputs;
    for (int64_t tile = first; tile < last; tile++) {
        for (int64_t t = 0; t < call->tokens; t += ROWS) {
            const int count = (int)(call->tokens - t < ROWS ? call->tokens - t : ROWS);
            const Group *rows[ROWS];
            vf out[ROWS];
            for (int r = 0; r < count; r++) rows[r] = row_of(&call->rows, t + r);
            products(call->weight, tile, rows, count, 0, out);
            for (int r = 0; r < count; r++) {
                float *to = call->out + (t + r) * outputs;
                if (call->adds) out[r] = vf_add(load_padded(to, tile * TILE, outputs), out[r]);
                store_padded(to, tile * TILE, outputs, out[r]);
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
