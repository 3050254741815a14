/* Prints a line for each instruction set and kernel: a number for all the bits of what it gives for fixed inputs. */
#include <stdio.h>
#include <stdlib.h>

#include "octavo.h"

enum { TOKENS = 150, INPUTS = 100, OUTPUTS = 40, WIDE = 2 * PANEL, HEADS = 6, KV_HEADS = 2, DIM = 40, BLOCK = 16, NUM_EXPERTS = 3, TOP_K = 2 };

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

static void report(const char *kernel, int64_t bits, const void *data, size_t bytes) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t n = 0; n < bytes; n++) hash = (hash ^ ((const unsigned char *)data)[n]) * 1099511628211u;
    printf("%s %s %d %016llx\n", octavo_level_name(octavo_level()), kernel, (int)bits, (unsigned long long)hash);
}

static Weight quantised(int64_t outputs, int64_t inputs, int64_t bits, int64_t terms) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL, cells = (inputs + CELL - 1) / CELL;
    const size_t bytes = (size_t)(panels * PANEL * cells * CELL / GROUP * (bits == 8 ? 34 : 20));
    const Weight weight = {calloc(bytes, 1), terms == 1 ? 1 : cells, outputs, inputs, bits, terms};
    const Source source = {numbers(outputs * inputs), FLOAT32, outputs, 0, 0, 1};
    octavo_quantise(&weight, &source);
    report("cells", bits, weight.cells, bytes);
    return weight;
}

static void linear(int64_t bits, int64_t terms) {
    const Weight weight = quantised(OUTPUTS, INPUTS, bits, terms);
    float out[TOKENS * OUTPUTS];
    octavo_linear(&weight, numbers(TOKENS * INPUTS), TOKENS, out);
    report(terms == 1 ? "linear" : "linear in two terms", bits, out, sizeof out);
}

static void experts(int64_t bits) {
    Weight gate_up[NUM_EXPERTS], down[NUM_EXPERTS];
    int64_t ids[TOKENS * TOP_K];
    float out[TOKENS * OUTPUTS];
    for (int n = 0; n < NUM_EXPERTS; n++) gate_up[n] = quantised(2 * WIDE, OUTPUTS, bits, 1);
    for (int n = 0; n < NUM_EXPERTS; n++) down[n] = quantised(OUTPUTS, WIDE, bits, 1);
    for (int n = 0; n < TOKENS * TOP_K; n++) ids[n] = (n + n / 7) % NUM_EXPERTS;
    const Experts all = {NULL, NULL, gate_up, down, NUM_EXPERTS, TOP_K, OUTPUTS, WIDE, 0};
    const float *x = numbers(TOKENS * OUTPUTS), *weights = numbers(TOKENS * TOP_K);
    octavo_experts(&all, x, TOKENS, ids, weights, out);
    report("experts", bits, out, sizeof out);
}

static void attention(void) {
    enum { BLOCKS = (TOKENS + BLOCK - 1) / BLOCK, KEPT = KV_HEADS * DIM, WIDTH = (HEADS + 2 * KV_HEADS) * DIM };
    int64_t slots[TOKENS];
    int32_t table[BLOCKS];
    const int32_t starts[] = {0, TOKENS}, lengths[] = {TOKENS};
    float out[TOKENS * HEADS * DIM];
    for (int n = 0; n < TOKENS; n++) slots[n] = n;
    for (int n = 0; n < BLOCKS; n++) table[n] = n;
    float *q = numbers(TOKENS * WIDTH), *k = q + HEADS * DIM;
    const Heads heads = {q, k, k + KEPT, WIDTH, WIDTH, WIDTH, HEADS, KV_HEADS, DIM};
    const Pass pass = {TOKENS, 1, slots, starts, lengths, table, BLOCKS, BLOCK, 0};
    const Rotation rotation = {numbers(TOKENS * DIM), numbers(TOKENS * DIM)};
    const Pages pages = {numbers(BLOCKS * BLOCK * KEPT), numbers(BLOCKS * BLOCK * KEPT)};
    octavo_attention(&heads, &pass, &rotation, &pages, out);
    report("attention", 32, out, sizeof out);
}

static void rms_norm(void) {
    float out[TOKENS * INPUTS];
    const float *x = numbers(TOKENS * INPUTS), *weight = numbers(INPUTS);
    octavo_rms_norm(x, weight, 1e-5f, TOKENS, INPUTS, out);
    report("rms_norm", 32, out, sizeof out);
}

int main(void) {
    octavo_set_threads(3);
    for (int64_t level = 0; octavo_level_name(level)[0]; level++) {
        if (octavo_set_level(level) != level) continue;
        seed = 0;
        for (int64_t bits = 4; bits <= 8; bits += 4) {
            linear(bits, 1);
            linear(bits, 2);
            experts(bits);
        }
        attention();
        rms_norm();
    }
}
