/* What lies between the interface (api.c) and the kernels, which are compiled once for each instruction set. */
#ifndef OCTAVO_KERNELS_H
#define OCTAVO_KERNELS_H

#include "octavo.h"
#include "pool.h"

/* Activations in int8: for each row and group of inputs a scale, and the sum of the integers. */
typedef struct {
    int8_t *quants; /* [rows, inputs], inputs padded to whole groups */
    float *scales;  /* [rows, groups] */
    int32_t *sums;  /* [rows, groups] */
    int64_t groups;
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
    Rows rows; /* x, quantised */
} LinearCall;

/* The (token, choice) pairs are sorted by expert:
 *
 *     ids     [[2, 0],      order     1    2    3    0        pair = token * top_k + choice
 *              [0, 1]]      expert    0    0    1    2
 *                           place  of pair 0 is 3, of pair 1 is 0, ...
 */
typedef struct {
    const Experts *experts;
    const float *x;
    int64_t tokens, pairs;
    int64_t *ids;   /* [T, k] */
    float *weights; /* [T, k] */
    float *out;     /* [T, hidden] */
    int adds;       /* out += instead of out = */
    float *normed;  /* [T, hidden] */
    Rows rows;      /* of tokens */
    Rows inner;     /* of sorted pairs: silu(gate) * up */
    float *outputs; /* of sorted pairs [P, hidden] */
    int64_t *order, *place; /* [P] */
    int64_t *starts;        /* [E + 1] of each expert's pairs in `order` */
    int64_t *active;        /* [E] the experts that have pairs, */
    int64_t *num_active;    /* and how many they are */
} ExpertsCall;

/* One instruction set's kernels: the bodies of parallel regions over the calls above. */
typedef struct {
    const char *name;
    void (*rms_norm)(Region *);
    void (*linear)(Region *);
    void (*experts)(Region *);
    void (*experts_layer)(Region *);
} Kernels;

extern const Kernels octavo_portable;
#if defined(__x86_64__)
extern const Kernels octavo_avx2, octavo_avx512;
#endif

static inline int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

#endif
