/* Declares what lies between the interface (api.c) and the kernels, which are compiled once for each instruction set. */
#ifndef OCTAVO_KERNELS_H
#define OCTAVO_KERNELS_H

#include "octavo.h"
#include "pool.h"

/* A Group holds the activations of a group of inputs in int8. */
typedef struct {
    int8_t quants[GROUP];
    float scale;
    float total;  /* scale times the sum of the integers */
    int32_t lift; /* -128 times the sum of the integers: what codes that are stored with 128 added have too much */
} Group;

/* Activations are rows in int8, each the sum of `terms` terms and padded with zeros to the weight's whole blocks. Rows that
 * are multiplied together are a chunk, in which their groups alternate: [chunks][groups][rows of a chunk]. */
typedef struct {
    Group *all;
    int64_t groups, terms;
} Activations;

/* Rows are some rows of activations: whole chunks of `chunk` rows, and perhaps a smaller last one. */
typedef struct {
    const Group *all;
    int64_t count, chunk;
} Rows;

typedef struct {
    const float *x, *weight;
    float eps;
    int64_t tokens, hidden;
    float *out;
} NormCall;

typedef struct {
    const Weight *weight;
    const float *x;
    int64_t tokens;
    float *out;
    Activations quantised; /* x, quantised */
    const float *bias; /* [outputs], or NULL */
    float share; /* of out += share * result; 0: it computes out = result */
} LinearCall;

/* An ExpertsCall sorts the (token, choice) pairs by expert:
 *
 *     ids     [[2, 0],      order     1    2    3    0        pair = token * top_k + choice
 *              [0, 1]]      expert    0    0    1    2
 *                           place  of pair 0 is 3, of pair 1 is 0, ...
 */
typedef struct {
    const Experts *experts;
    const float *x;
    int64_t tokens, num_pairs;
    int64_t *ids;   /* [T, k] */
    float *weights; /* [T, k] */
    float *out;     /* [T, hidden] */
    int adds;       /* whether it computes out += instead of out = */
    float *normed;  /* [T, hidden] */
    const float *inputs; /* [T, hidden], which the experts take: normed, or x where there is no norm */
    float *scores;  /* [T, E], the router's */
    Activations quantised; /* the tokens', each a chunk of its own */
    Activations sorted;    /* the sorted pairs', where an expert has several, or an order of its own */
    Activations inner;     /* the activated gate times up of the sorted pairs */
    float *outputs; /* [P, hidden], of the sorted pairs */
    int64_t *order, *place; /* [P] */
    int64_t *starts;        /* [E + 1], where each expert's pairs begin in `order` */
    int64_t *active;        /* [E], the experts that have pairs */
    int64_t *num_active;    /* the number of these experts */
    int64_t *num_gathered;  /* P, or 0 where every pair takes its token's row */
} ExpertsCall;

enum {
    KEYS = 32,    /* keys that are scored at once; the first one's position is a multiple of it */
    SPAN = 128,   /* keys of one running softmax, which begins at a multiple of it; several spans are then merged */
    QUERIES = 64, /* queries of a unit, about; they share a copy of its keys and values */
};

/* A Unit is a thread's work: query rows of one sequence, over the keys that any of them sees. Several rows share the keys
 * in the processor's cache, one key-value head at a time. A single row is bound by memory, where the heads of a position
 * are neighbours. So it takes all heads at once, and it has a unit for each span of its keys: in this way one long
 * sequence has work for many threads. */
typedef struct {
    int64_t sequence;
    int64_t row, rows;   /* first row in the batch, and number of rows */
    int64_t head, heads; /* first head of keys and values, and number of heads */
    int64_t position;    /* the first row's, in its sequence */
    int64_t first, last; /* keys; `last` is exclusive */
    float *states;       /* [heads, queries], the span's softmax; NULL: no other unit has these rows and heads */
} Unit;

/* A Partial holds what a row's units left, which is to be merged. */
typedef struct {
    const float *states; /* [spans, Hq] */
    int64_t spans;
} Partial;

typedef struct {
    const Attention *layer; /* NULL: only attention, without norm, qkv and o */
    Heads heads;
    const Pass *pass;
    const Rotation *rotation; /* or NULL */
    const Pages *pages;
    float *out;          /* [T, Hq * D] */
    const float *x;      /* [T, H] */
    LinearCall qkv, o;   /* qkv leads from the normalised x to heads, o from out to x */
    Unit *units;
    int64_t num_units;
    Partial *partials; /* [T] */
    float *states;     /* those of all partials */
    int64_t used_states; /* floats */
} AttentionCall;

/* Kernels are those of one instruction set: the bodies of parallel regions over the calls above. */
typedef struct {
    const char *name;
    void (*quantise)(const Weight *, const Source *); /* It has no region; it runs on the calling thread. */
    void (*rms_norm)(Region *);
    void (*linear)(Region *);
    void (*attention)(Region *);
    void (*attention_layer)(Region *);
    void (*experts)(Region *);
    void (*experts_layer)(Region *);
} Kernels;

extern const Kernels octavo_portable;
#if defined(__x86_64__)
extern const Kernels octavo_avx2, octavo_avx512;
#elif defined(__aarch64__)
extern const Kernels octavo_neon;
#endif

static inline int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

static inline int64_t panels_of(int64_t outputs) { return round_up(outputs, PANEL) / PANEL; }

static inline int64_t blocks_of(const Weight *weight) { return (weight->inputs + weight->block - 1) / weight->block; }

/* Returns the groups of a matrix, and of the rows that it is multiplied with. */
static inline int64_t groups_of(const Weight *weight) { return blocks_of(weight) * weight->block / GROUP; }

/* A BlockLayout says where a block of a tile has what, in bytes: [count][TILE] of each. */
typedef struct {
    int64_t scales, coarse_minima, offsets, codes; /* The coarse scales are at 0. */
    int64_t bytes;
} BlockLayout;

static inline BlockLayout layout_of(const Weight *weight) {
    static const int64_t BYTES[] = {0, 4, 2, 2, 1, 1, 1}; /* of a scale */
    const Kind *kind = &weight->kind;
    const int64_t groups = kind->group ? weight->block / kind->group : 0, scale = BYTES[kind->scale];
    const int64_t coarse = kind->scale == SCALE_INT8_OF_256 ? weight->block / SUPER * TILE * 2 : 0;
    const int64_t offset = kind->offset == OFFSET_ZERO ? 1 : kind->offset == OFFSET_MINIMUM ? scale : 0;
    BlockLayout at = {.scales = coarse, .coarse_minima = coarse + groups * TILE * scale};
    at.offsets = at.coarse_minima + (kind->offset == OFFSET_MINIMUM ? coarse : 0);
    at.codes = round_up(at.offsets + groups * TILE * offset, 64);
    at.bytes = at.codes + weight->block * TILE * kind->bits / 8;
    return at;
}

/* Returns the bytes before a panel's blocks: a factor for each output, and an offset where channels have one. */
static inline int64_t header_of(const Weight *weight) {
    return PANEL * (int64_t)sizeof(float) * (weight->kind.group == 0 && weight->kind.offset >= OFFSET_ZERO ? 2 : 1);
}

static inline const uint8_t *panel_of(const Weight *weight, int64_t panel) {
    return weight->panels + panel * (header_of(weight) + blocks_of(weight) * TILES * layout_of(weight).bytes);
}

/* Returns the floats of a query's running softmax: the largest score (and room to align it), 16 sums, and the outputs. */
static inline int64_t state_size(int64_t head_dim) { return 2 * TILE + round_up(head_dim, TILE); }

#endif
