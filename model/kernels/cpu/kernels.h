/* Declares what lies between the interface (api.c) and the kernels, which are compiled once for each instruction set. */
#ifndef OCTAVO_KERNELS_H
#define OCTAVO_KERNELS_H

#include "octavo.h"
#include "pool.h"

/* A Group holds the activations of a group of inputs in int8. */
typedef struct {
    int8_t quants[GROUP];
    float scale;
    int32_t sum; /* sum of the integers */
} Group;

/* Activations are rows in int8. Each row is the sum of `terms` terms, and is padded with zeros to whole cells. */
typedef struct {
    Group *all; /* [rows, terms, groups] */
    int64_t groups, terms;
} Activations;

/* Returns term n % terms of row n / terms. */
static inline Group *term_of(const Activations *activations, int64_t n) { return activations->all + n * activations->groups; }

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
    int adds;  /* whether it computes out += instead of out = */
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
    Activations quantised; /* the tokens' */
    Activations inner;     /* silu(gate) * up of the sorted pairs */
    float *outputs; /* [P, hidden], of the sorted pairs */
    int64_t *order, *place; /* [P] */
    int64_t *starts;        /* [E + 1], where each expert's pairs begin in `order` */
    int64_t *active;        /* [E], the experts that have pairs */
    int64_t *num_active;    /* the number of these experts */
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

/* Returns the groups of a matrix, and of the rows that it is multiplied with: they are whole cells. */
static inline int64_t groups_of(int64_t inputs) { return round_up(inputs, CELL) / GROUP; }

static inline int64_t panels_of(int64_t outputs) { return round_up(outputs, PANEL) / PANEL; }

enum { NUMBERS = 2 * TILE * sizeof(uint16_t) }; /* bytes of a cell's scales, and of its mins */

/* Returns the bytes of a cell. It holds the scales of both groups, in int4 the mins of both, and the quants of both. */
static inline int64_t bytes_of_cell(int64_t bits) {
    return bits == 8 ? NUMBERS + CELL * TILE : 2 * NUMBERS + CELL * TILE / 2;
}

/* Returns the floats of a query's running softmax: the largest score (and room to align it), 16 sums, and the outputs. */
static inline int64_t state_size(int64_t head_dim) { return 2 * TILE + round_up(head_dim, TILE); }

#endif
