/* Implements the interface: it sizes a call's workspace, lays it out, and runs the kernels of the best instruction set. */
#include <stdbool.h>
#include <stddef.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

static bool anywhere(void) { return true; }

#if defined(__x86_64__)
static bool has_f16c(void) { /* Not every clang knows this feature's name, so the processor is asked directly. */
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

static bool has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
static bool has_dot_products(void) {
#if defined(__ARM_FEATURE_DOTPROD) /* The compiler knows it, for instance for every Mac. */
    return true;
#elif defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return false;
#endif
}
#endif

/* Lists the instruction sets of this architecture, the best one last. */
static const struct {
    const Kernels *kernels;
    bool (*runs)(void); /* whether this machine has it */
} LEVEL[] = {
    {&octavo_portable, anywhere},
#if defined(__x86_64__)
    {&octavo_avx2, has_avx2},
    {&octavo_avx512, has_avx512},
#elif defined(__aarch64__)
    {&octavo_neon, has_dot_products},
#endif
};

enum { LEVELS = sizeof LEVEL / sizeof *LEVEL };

static int64_t level; /* the one in use */

int64_t octavo_set_level(int64_t wanted) {
    level = wanted < 0 || wanted >= LEVELS ? LEVELS - 1 : wanted;
    while (!LEVEL[level].runs()) level--;
    return level;
}

__attribute__((constructor)) static void choose_level(void) { octavo_set_level(LEVELS - 1); }

int64_t octavo_level(void) { return level; }

const char *octavo_level_name(int64_t of) { return of >= 0 && of < LEVELS ? LEVEL[of].kernels->name : ""; }

int64_t octavo_interface(int64_t item) {
    static const int64_t items[] = {INTERFACE,    sizeof(Kind),     sizeof(Weight), sizeof(Source), sizeof(Experts),
                                    sizeof(Pass), sizeof(Rotation), sizeof(Heads),  sizeof(Pages),  sizeof(Attention)};
    return item >= 0 && item < (int64_t)(sizeof items / sizeof *items) ? items[item] : 0;
}

void octavo_set_threads(int64_t threads) { pool_set_threads(threads); }

/* An Arena lays arrays out one after the other. With a base of NULL it only counts their bytes. */
typedef struct {
    unsigned char *base;
    size_t used;
} Arena;

static void *take(Arena *arena, int64_t items, size_t size) {
    unsigned char *at = arena->base ? arena->base + arena->used : NULL;
    arena->used += (size_t)round_up(items * (int64_t)size, 64);
    return at;
}

/* Takes room for rows that a weight is multiplied with. */
static Activations take_activations(Arena *arena, int64_t rows, const Weight *weight) {
    const int64_t groups = groups_of(weight);
    return (Activations){take(arena, rows * weight->terms * groups, sizeof(Group)), groups, weight->terms};
}

void octavo_quantise(const Weight *weight, const Source *source) { LEVEL[level].kernels->quantise(weight, source); }

void octavo_rms_norm(const float *x, const float *weight, float eps, int64_t tokens, int64_t hidden, float *out) {
    const NormCall call = {x, weight, eps, tokens, hidden, out};
    pool_acquire(0);
    pool_run(LEVEL[level].kernels->rms_norm, &call);
    pool_release();
}

void octavo_linear(const Weight *weight, const float *x, int64_t tokens, float *out) {
    LinearCall call = {.weight = weight, .x = x, .tokens = tokens, .out = out};
    Arena arena = {0};
    take_activations(&arena, tokens, weight);
    arena = (Arena){pool_acquire(arena.used), 0};
    call.quantised = take_activations(&arena, tokens, weight);
    pool_run(LEVEL[level].kernels->linear, &call);
    pool_release();
}

static void add_unit(AttentionCall *call, const Unit *unit) {
    if (call->units) call->units[call->num_units] = *unit;
    call->num_units++;
}

/* Adds the units of a single row. Heads that do not fill whole registers are copied, so they get a unit each, since a
 * thread has little stack. */
static void add_spans(AttentionCall *call, Unit unit) {
    const Heads *heads = &call->heads;
    const int64_t end = unit.last, spans = unit.last > unit.first ? (end - 1) / SPAN - unit.first / SPAN + 1 : 1;
    const int64_t state = heads->num_heads / heads->num_kv_heads * state_size(heads->head_dim); /* floats of a head's queries */
    unit.heads = heads->head_dim % TILE ? 1 : heads->num_kv_heads;
    if (call->units && spans > 1) call->partials[unit.row] = (Partial){call->states + call->used_states, spans};
    for (int64_t n = 0; n < spans; n++) {
        const int64_t next = unit.first / SPAN * SPAN + SPAN;
        unit.last = next < end ? next : end;
        for (unit.head = 0; unit.head < heads->num_kv_heads; unit.head += unit.heads) {
            unit.states = call->units && spans > 1 ? call->states + call->used_states : NULL;
            add_unit(call, &unit);
            call->used_states += spans > 1 ? unit.heads * state : 0;
        }
        unit.first = next;
    }
}

static void add_heads(AttentionCall *call, Unit unit) {
    unit.heads = 1;
    for (unit.head = 0; unit.head < call->heads.num_kv_heads; unit.head++) add_unit(call, &unit);
}

/* Cuts the forward pass into units. While there is no room for them it only counts. */
static void cut_into_units(AttentionCall *call) {
    const Pass *pass = call->pass;
    const int64_t heads_per_kv = call->heads.num_heads / call->heads.num_kv_heads;
    const int64_t at_once = heads_per_kv < QUERIES ? QUERIES / heads_per_kv : 1;
    call->num_units = call->used_states = 0;
    for (int64_t row = 0; row < pass->tokens && call->units; row++) call->partials[row] = (Partial){NULL, 0};
    for (int64_t n = 0; n < pass->sequences; n++) {
        const int64_t end = pass->q_starts[n + 1], kv_len = pass->kv_lens[n];
        for (int64_t row = pass->q_starts[n]; row < end; row += at_once) {
            const int64_t rows = end - row < at_once ? end - row : at_once, position = kv_len - (end - row);
            Unit unit = {.sequence = n, .row = row, .rows = rows, .position = position};
            unit.first = pass->window && position >= pass->window ? position + 1 - pass->window : 0;
            unit.last = kv_len ? position + rows : 0; /* A row of padding sees nothing. */
            rows == 1 ? add_spans(call, unit) : add_heads(call, unit);
        }
    }
}

static size_t lay_out_attention(AttentionCall *call, unsigned char *base) {
    Arena arena = {base, 0};
    call->units = take(&arena, call->num_units, sizeof(Unit));
    call->partials = take(&arena, call->pass->tokens, sizeof(Partial));
    call->states = take(&arena, call->used_states, sizeof(float));
    return arena.used;
}

void octavo_attention(const Heads *heads, const Pass *pass, const Rotation *rotation, const Pages *pages, float *out) {
    AttentionCall call = {.heads = *heads, .pass = pass, .rotation = rotation, .pages = pages, .out = out};
    cut_into_units(&call);
    lay_out_attention(&call, pool_acquire(lay_out_attention(&call, NULL)));
    cut_into_units(&call);
    pool_run(LEVEL[level].kernels->attention, &call);
    pool_release();
}

/* Lays out the buffers between the stages of the layer, and after them what attention needs. */
static size_t lay_out_layer(AttentionCall *call, unsigned char *base) {
    const Attention *layer = call->layer;
    const int64_t tokens = call->pass->tokens, dim = layer->head_dim;
    Arena arena = {base, 0};
    const Activations normed = take_activations(&arena, tokens, &layer->qkv);
    const Activations attended = take_activations(&arena, tokens, &layer->o);
    float *heads = take(&arena, tokens * layer->qkv.outputs, sizeof(float));
    call->out = take(&arena, tokens * layer->o.inputs, sizeof(float));
    call->qkv = (LinearCall){&layer->qkv, NULL, tokens, heads, normed, layer->qkv_bias, 0};
    call->o = (LinearCall){&layer->o, call->out, tokens, (float *)call->x, attended, layer->o_bias, layer->residual};
    if (base) {
        call->heads.q = heads;
        call->heads.k = heads + layer->num_heads * dim;
        call->heads.v = call->heads.k + layer->num_kv_heads * dim;
    }
    return arena.used + lay_out_attention(call, base ? base + arena.used : NULL);
}

void octavo_attention_layer(const Attention *attention, const Pass *pass, const Rotation *rotation, const Pages *pages,
                            float *x) {
    const int64_t width = attention->qkv.outputs;
    AttentionCall call = {.layer = attention, .pass = pass, .rotation = rotation, .pages = pages, .x = x};
    call.heads = (Heads){.sinks = attention->sinks,
                         .q_stride = width,
                         .k_stride = width,
                         .v_stride = width,
                         .num_heads = attention->num_heads,
                         .num_kv_heads = attention->num_kv_heads,
                         .head_dim = attention->head_dim,
                         .scale = attention->scale};
    cut_into_units(&call);
    lay_out_layer(&call, pool_acquire(lay_out_layer(&call, NULL)));
    cut_into_units(&call);
    pool_run(LEVEL[level].kernels->attention_layer, &call);
    pool_release();
}

static size_t lay_out_experts(ExpertsCall *call, unsigned char *base) {
    const Experts *experts = call->experts;
    Arena arena = {base, 0};
    if (!call->inputs) call->inputs = call->normed = take(&arena, call->tokens * experts->hidden, sizeof(float));
    call->scores = take(&arena, call->tokens * experts->num_experts, sizeof(float));
    call->quantised = take_activations(&arena, call->tokens, experts->gate_up);
    call->sorted = take_activations(&arena, call->num_pairs, experts->gate_up);
    call->inner = take_activations(&arena, call->num_pairs, experts->down);
    call->outputs = take(&arena, call->num_pairs * experts->hidden, sizeof(float));
    call->order = take(&arena, call->num_pairs, sizeof(int64_t));
    call->place = take(&arena, call->num_pairs, sizeof(int64_t));
    call->starts = take(&arena, experts->num_experts + 1, sizeof(int64_t));
    call->active = take(&arena, experts->num_experts, sizeof(int64_t));
    call->num_active = take(&arena, 1, sizeof(int64_t));
    call->num_gathered = take(&arena, 1, sizeof(int64_t));
    return arena.used;
}

static void run_experts(ExpertsCall *call, void (*body)(Region *)) {
    call->num_pairs = call->tokens * call->experts->top_k;
    lay_out_experts(call, pool_acquire(lay_out_experts(call, NULL)));
    pool_run(body, call);
    pool_release();
}

void octavo_experts_layer(const Experts *experts, float *x, int64_t tokens, int64_t *ids, float *weights) {
    ExpertsCall call = {.experts = experts, .x = x, .tokens = tokens, .ids = ids, .weights = weights, .out = x, .adds = 1};
    run_experts(&call, LEVEL[level].kernels->experts_layer);
}

void octavo_experts(const Experts *experts, const float *x, int64_t tokens, const int64_t *ids, const float *weights,
                    float *out) {
    ExpertsCall call = {.experts = experts,
                        .x = x,
                        .tokens = tokens,
                        .ids = (int64_t *)ids, /* Only the layer's router writes them. */
                        .weights = (float *)weights,
                        .inputs = x,
                        .out = out};
    run_experts(&call, LEVEL[level].kernels->experts);
}
