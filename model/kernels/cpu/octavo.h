/* The C kernels' interface: plain structs and raw pointers, mirrored in structs.py.
 *
 * Activations are float32. Every function below is one parallel region over the pool's threads; calls from several
 * threads take turns. None allocates per call beyond a workspace that grows to the largest step and is then reused.
 *
 * What a row of any result holds depends on that row's own input and on nothing else: not on how many rows come with
 * it, what they hold, how many threads there are, or which instructions the machine has (given a fused multiply-add).
 */
#ifndef OCTAVO_H
#define OCTAVO_H

#include <stdint.h>

#define API __attribute__((visibility("default")))

enum {
    TILE = 16,            /* outputs */
    TILES = 4,            /* of a panel */
    PANEL = TILES * TILE, /* outputs */
    SLICE = 4,            /* inputs of one dot product, */
    GROUP = 32,           /* with one scale, */
    CELL = 2 * GROUP,     /* and of a cell */
};

/* A matrix [outputs, inputs] in int8 or int4; see model/weights/tiles.py for the layout. */
typedef struct {
    const uint8_t *cells; /* [panels][blocks][TILES][block][bytes] */
    int64_t block;        /* cells of a tile */
    int64_t outputs;
    int64_t inputs;
    int64_t bits;  /* 8 or 4 */
    int64_t terms; /* in int8 that an activation is the sum of: 1, or 2, the second being what rounding left of it */
} Weight;

enum { FLOAT32, FLOAT16, BFLOAT16 };

/* Rows of a matrix as a checkpoint has them. Row r becomes output (first + r) % TILE of tile
 * `tile + (first + r) / TILE * stride`: the stride is 2 where the tiles of two halves alternate.
 */
typedef struct {
    const void *rows; /* [count, inputs] */
    int64_t type;     /* FLOAT32, ... */
    int64_t count;
    int64_t first, tile, stride;
} Source;

/* Quantises rows into a weight: on the calling thread, so that several can fill the parts of a model at once. */
API void octavo_quantise(const Weight *weight, const Source *source);

/* One layer's experts. A dense layer has one expert, no router, and top_k 1. */
typedef struct {
    const float *norm;   /* [H] */
    const float *router; /* [E, H], or NULL */
    const Weight *gate_up; /* [E], tiles of gate and up in turn */
    const Weight *down;    /* [E] */
    int64_t num_experts;
    int64_t top_k;
    int64_t hidden;
    int64_t intermediate;
    float eps;
} Experts;

/* x [T, hidden] += experts(norm(x)); ids and weights [T, k] say what the router chose. */
API void octavo_experts_layer(const Experts *experts, float *x, int64_t tokens, int64_t *ids, float *weights);

/* out [T, hidden] = experts(x) with choices made before: the seam `experts`. */
API void octavo_experts(const Experts *experts, const float *x, int64_t tokens, const int64_t *ids, const float *weights,
                    float *out);

/* out [T, outputs] = x [T, inputs] times weight transposed. */
API void octavo_linear(const Weight *weight, const float *x, int64_t tokens, float *out);

/* out [T, hidden] = x / rms(x) * weight. */
API void octavo_rms_norm(const float *x, const float *weight, float eps, int64_t tokens, int64_t hidden, float *out);

/* One step's tokens, as model/batch.py describes them: N sequences, whose new tokens are the last of their positions. */
typedef struct {
    int64_t tokens;    /* T */
    int64_t sequences; /* N */
    const int64_t *slots;       /* [T] where each key and value is written; -1 writes nothing */
    const int32_t *q_starts;    /* [N + 1] */
    const int32_t *kv_lens;     /* [N], 0 for rows of padding, which get zeros */
    const int32_t *block_table; /* [N, table_width] */
    int64_t table_width;
    int64_t block_size;
    int64_t window; /* positions that a token sees, its own included; 0: all that are before it */
} Pass;

/* The rotary angles of a step's positions, as model/layers.py has them. */
typedef struct {
    const float *cos; /* [T, D] */
    const float *sin; /* [T, D], the first half negated */
} Rotation;

/* Queries [T, Hq, D], keys and values [T, Hkv, D] of the new tokens; strides are floats from one token to the next. */
typedef struct {
    float *q, *k;
    const float *v;
    int64_t q_stride, k_stride, v_stride;
    int64_t num_heads, num_kv_heads, head_dim;
} Heads;

/* Where one layer's keys and values are kept, [num_blocks, block_size, Hkv, D] each. */
typedef struct {
    float *keys, *values;
} Pages;

/* One layer's attention. */
typedef struct {
    const float *norm; /* [H] */
    Weight qkv;        /* [(Hq + 2 Hkv) * D, H] */
    Weight o;          /* [H, Hq * D] */
    int64_t num_heads, num_kv_heads, head_dim;
    float eps;
} Attention;

/* x [T, H] += o(attention(rotated qkv(norm(x)))); the pages have the new keys and values afterwards. */
API void octavo_attention_layer(const Attention *attention, const Pass *pass, const Rotation *rotation,
                                const Pages *pages, float *x);

/* out [T, Hq * D] = causal attention: the seam `attention`. With a rotation it rotates q and k first, in place. Keys and
 * values that a token may not see never enter its sums: there may be anything in their places, NaN included. */
API void octavo_attention(const Heads *heads, const Pass *pass, const Rotation *rotation, const Pages *pages, float *out);

API void octavo_set_threads(int64_t threads);

/* Instruction sets, the best one last: which of them this machine has is known after loading. */
API int64_t octavo_level(void);
API int64_t octavo_set_level(int64_t level); /* returns the level that is then in use */
API const char *octavo_level_name(int64_t level);

/* What a caller compares with what it was written for: INTERFACE, then the size of each struct above, in their order,
 * then 0. INTERFACE is the CRC-32 of all that is declared in this file; tests/model/kernels/cpu/test_library.py says which.
 */
#define INTERFACE 0x1373e36d
API int64_t octavo_interface(int64_t item);

#endif
