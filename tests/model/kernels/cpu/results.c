/* Prints a line for each instruction set and kernel: a number for all the bits of what it gives for fixed inputs. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h" /* for the sizes of a weight */

enum { TOKENS = 150, INPUTS = 100, OUTPUTS = 40, WIDE = 2 * PANEL, HEADS = 6, KV_HEADS = 2, DIM = 40, PAGE = 16, NUM_EXPERTS = 3, TOP_K = 2 };

static uint64_t seed;

static float next(void) { /* of a linear congruential generator (https://en.wikipedia.org/wiki/MMIX), from -1 to 1 */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

static float *numbers(int64_t count) {
    float *out = malloc((size_t)count * sizeof *out);
    for (int64_t n = 0; n < count; n++) out[n] = next();
    return out;
}

static void report(const char *kernel, const char *kind, const void *data, size_t bytes) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t n = 0; n < bytes; n++) hash = (hash ^ ((const unsigned char *)data)[n]) * 1099511628211u;
    printf("%s %s %s %016llx\n", octavo_level_name(octavo_level()), kernel, kind, (unsigned long long)hash);
}

/* Every scale, offset and width of codes comes up, and a table that AVX2's faster products take, and one that they do not. */
#define STEPS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#define UNEVEN {-34, -26, -21, -17, -13, -9, -6, -3, 0, 3, 6, 10, 14, 18, 23, 29}
#define WIDE_TABLE {-128, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 127}

static const struct {
    const char *name;
    int quantised; /* whether octavo_quantise makes it */
    Kind kind;
} KINDS[] = {
    {"int8", 1, {8, 32, SCALE_INT8, OFFSET_NONE, 0, {0}}},
    {"fine", 1, {8, 32, SCALE_FLOAT16, OFFSET_NONE, 0, {0}}},
    {"int4", 1, {4, 32, SCALE_INT8, OFFSET_ODD, 1, UNEVEN}},
    {"even4", 1, {4, 32, SCALE_FLOAT16, OFFSET_MINIMUM, 0, STEPS}},
    {"zero", 0, {4, 96, SCALE_FLOAT16, OFFSET_ZERO, 0, STEPS}},
    {"float32", 0, {4, 128, SCALE_FLOAT32, OFFSET_ZERO, 0, STEPS}},
    {"minimum32", 0, {8, 64, SCALE_FLOAT32, OFFSET_MINIMUM, 0, {0}}},
    {"zero8", 0, {8, 64, SCALE_BFLOAT16, OFFSET_ZERO, 0, {0}}},
    {"minimum", 0, {4, 64, SCALE_BFLOAT16, OFFSET_MINIMUM, 0, WIDE_TABLE}},
    {"e8m0", 0, {4, 32, SCALE_E8M0, OFFSET_NONE, 0, WIDE_TABLE}},
    {"two-level", 0, {4, 32, SCALE_INT8_OF_256, OFFSET_MINIMUM, 0, STEPS}},
    {"channel", 0, {8, 0, SCALE_NONE, OFFSET_ZERO, 0, {0}}},
};

/* Fills a weight with numbers that are finite in every type, and with any codes. */
static void fill(const Weight *weight, size_t panel_bytes) {
    const BlockLayout at = layout_of(weight);
    for (int64_t panel = 0; panel < panels_of(weight->outputs); panel++) {
        uint8_t *from = (uint8_t *)weight->panels + (size_t)panel * panel_bytes;
        float *header = (float *)from;
        for (int64_t n = 0; n < header_of(weight) / 4; n++) header[n] = next();
        for (int64_t tile = 0; tile < blocks_of(weight) * TILES; tile++) {
            uint8_t *block = from + header_of(weight) + tile * at.bytes;
            for (int64_t n = 0; n < at.bytes; n++) {
                const uint8_t byte = (uint8_t)(int)(128 + 127 * next());
                block[n] = n < at.codes ? 0x28 + (byte & 7) : byte;
            }
        }
    }
}

static int64_t unit_of(const Kind *kind) {
    if (kind->scale == SCALE_INT8_OF_256) return SUPER;
    return kind->group % CELL ? 2 * kind->group : kind->group ? kind->group : CELL;
}

static Weight held(int n, int64_t outputs, int64_t inputs, int64_t terms) {
    const Kind kind = KINDS[n].kind;
    const int64_t unit = unit_of(&kind), units = (inputs + unit - 1) / unit;
    Weight weight = {NULL, terms == 1 ? unit : units * unit, outputs, inputs, terms, kind, NULL};
    const size_t panel_bytes = (size_t)(header_of(&weight) + blocks_of(&weight) * TILES * layout_of(&weight).bytes);
    const size_t bytes = (size_t)panels_of(outputs) * panel_bytes;
    weight.panels = calloc(bytes, 1);
    const Source source = {numbers(outputs * inputs), FLOAT32, outputs, 0, 0, 1};
    KINDS[n].quantised ? octavo_quantise(&weight, &source) : fill(&weight, panel_bytes);
    if (KINDS[n].quantised) report("weights", KINDS[n].name, weight.panels, bytes);
    return weight;
}

static void linear(int kind, int64_t terms) {
    const Weight weight = held(kind, OUTPUTS, INPUTS, terms);
    float out[TOKENS * OUTPUTS];
    octavo_linear(&weight, numbers(TOKENS * INPUTS), TOKENS, out);
    report(terms == 1 ? "linear" : "linear in two terms", KINDS[kind].name, out, sizeof out);
}

static void experts(int kind) {
    Weight gate_up[NUM_EXPERTS], down[NUM_EXPERTS];
    int64_t ids[TOKENS * TOP_K];
    float out[TOKENS * OUTPUTS];
    for (int n = 0; n < NUM_EXPERTS; n++) gate_up[n] = held(kind, 2 * WIDE, OUTPUTS, 1);
    for (int n = 0; n < NUM_EXPERTS; n++) down[n] = held(kind, OUTPUTS, WIDE, 1);
    for (int n = 0; n < TOKENS * TOP_K; n++) ids[n] = (n + n / 7) % NUM_EXPERTS;
    const float *gate_up_bias = numbers(NUM_EXPERTS * 2 * WIDE), *down_bias = numbers(NUM_EXPERTS * OUTPUTS);
    const Experts all = {.gate_up = gate_up,
                         .down = down,
                         .gate_up_bias = gate_up_bias,
                         .down_bias = down_bias,
                         .num_experts = NUM_EXPERTS,
                         .top_k = TOP_K,
                         .hidden = OUTPUTS,
                         .intermediate = WIDE,
                         .alpha = 1.702f,
                         .limit = 0.5f,
                         .shift = 1};
    const float *x = numbers(TOKENS * OUTPUTS), *weights = numbers(TOKENS * TOP_K);
    octavo_experts(&all, x, TOKENS, ids, weights, out);
    report("experts", KINDS[kind].name, out, sizeof out);
}

static void attention(const float *sinks) {
    enum { BLOCKS = (TOKENS + PAGE - 1) / PAGE, KEPT = KV_HEADS * DIM, WIDTH = (HEADS + 2 * KV_HEADS) * DIM };
    int64_t slots[TOKENS];
    int32_t table[BLOCKS];
    const int32_t starts[] = {0, TOKENS}, lengths[] = {TOKENS};
    float out[TOKENS * HEADS * DIM];
    for (int n = 0; n < TOKENS; n++) slots[n] = n;
    for (int n = 0; n < BLOCKS; n++) table[n] = n;
    float *q = numbers(TOKENS * WIDTH), *k = q + HEADS * DIM;
    const Heads heads = {q, k, k + KEPT, sinks, WIDTH, WIDTH, WIDTH, HEADS, KV_HEADS, DIM, 0.2f};
    const Pass pass = {TOKENS, 1, slots, starts, lengths, table, BLOCKS, PAGE, 0};
    const Rotation rotation = {numbers(TOKENS * DIM), numbers(TOKENS * DIM)};
    const Pages pages = {numbers(BLOCKS * PAGE * KEPT), numbers(BLOCKS * PAGE * KEPT)};
    octavo_attention(&heads, &pass, &rotation, &pages, out);
    report(sinks ? "attention with sinks" : "attention", "float32", out, sizeof out);
}

static void rms_norm(void) {
    float out[TOKENS * INPUTS];
    const float *x = numbers(TOKENS * INPUTS), *weight = numbers(INPUTS);
    octavo_rms_norm(x, weight, 1e-5f, TOKENS, INPUTS, out);
    report("rms_norm", "float32", out, sizeof out);
}

int main(void) {
    octavo_set_threads(3);
    for (int64_t level = 0; octavo_level_name(level)[0]; level++) {
        if (octavo_set_level(level) != level) continue;
        seed = 0;
        for (int kind = 0; kind < (int)(sizeof KINDS / sizeof *KINDS); kind++) {
            linear(kind, 1);
            linear(kind, 2);
            experts(kind);
        }
        attention(NULL);
        attention(numbers(HEADS));
        rms_norm();
    }
}
