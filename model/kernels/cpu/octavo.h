/* This is the C kernels' interface: plain structs and raw pointers, which structs.py mirrors.
 *
 * Activations are float32. Every function below is one parallel region over the pool's threads; calls from several
 * threads take turns. The only memory that a call allocates is a workspace, which grows to the largest call's needs and
 * is reused.
 *
 * A row of a result depends on that row's own input and on nothing else: not on the number of rows beside it, their
 * contents, the number of threads, or the machine's instructions (if it has a fused multiply-add).
 */
#ifndef OCTAVO_H
#define OCTAVO_H

#include <stdint.h>

#define API __attribute__((visibility("default")))

enum {
    TILE = 16,            /* outputs */
    TILES = 4,            /* in a panel */
    PANEL = TILES * TILE, /* outputs */
    SLICE = 4,            /* inputs of one dot product */
    GROUP = 32,           /* inputs whose products are summed as whole numbers */
    CELL = 2 * GROUP,     /* inputs; a matrix is padded to whole cells */
    SUPER = 256,          /* inputs that share the coarse numbers of a two-level scale */
    BLOCK = 1024,         /* most inputs of a block */
};

enum { SCALE_NONE, SCALE_FLOAT32, SCALE_FLOAT16, SCALE_BFLOAT16, SCALE_E8M0, SCALE_INT8, SCALE_INT8_OF_256 };
enum { OFFSET_NONE, OFFSET_ODD, OFFSET_ZERO, OFFSET_MINIMUM };

/* A Kind says what the codes of a matrix mean; model/weights/kinds.py describes it. */
typedef struct {
    int64_t bits;      /* of a code: 8, or 4 */
    int64_t group;     /* inputs that share a scale; 0: all of an output's */
    int64_t scale;     /* SCALE_... */
    int64_t offset;    /* OFFSET_... */
    int64_t shift;     /* what an odd scale adds to the values */
    int8_t values[16]; /* of codes of 4 bits */
} Kind;

/* A Weight is a matrix [outputs, inputs] of some kind; model/weights/tiles.py describes the layout. */
typedef struct {
    const uint8_t *panels; /* each has a header and [blocks][TILES][bytes] */
    int64_t block;         /* inputs of a block */
    int64_t outputs;
    int64_t inputs;
    int64_t terms; /* int8 numbers that an activation is the sum of: 1; or 2, where the second is the first's rounding error */
    Kind kind;
    const int32_t *order; /* [inputs], input n multiplies activation order[n]; NULL: activation n */
} Weight;

enum { FLOAT32, FLOAT16, BFLOAT16 };

/* A Source is rows of a matrix in a checkpoint's layout. Row r becomes output (first + r) % TILE of tile
 * `tile + (first + r) / TILE * stride`. The stride is 2 where the tiles of two halves alternate.
 */
typedef struct {
    const void *rows; /* [count, inputs] */
    int64_t type;     /* FLOAT32, FLOAT16 or BFLOAT16 */
    int64_t count;
    int64_t first, tile, stride;
} Source;

/* Quantises rows into a weight of one of the kinds that Octavo makes itself (model/weights/rounding.py). It runs on the
 * calling thread, so that several threads can fill a model at once. */
API void octavo_quantise(const Weight *weight, const Source *source);

/* Experts are those of one layer. A dense layer has one expert, no router, and top_k 1. An expert multiplies the activation
 * g * sigmoid(alpha * g) of its gate g with u + shift, where u is its up. Before that, g is cut to at most `limit`, and u to
 * between -limit and limit. */
typedef struct {
    const float *norm;         /* [H] */
    const float *router;       /* [E, H], or NULL */
    const float *router_bias;  /* [E], or NULL */
    const Weight *gate_up;     /* [E], tiles of gate and up alternate */
    const Weight *down;        /* [E] */
    const float *gate_up_bias; /* [E, 2 intermediate], gate's before up's; or NULL */
    const float *down_bias;    /* [E, H], or NULL */
    int64_t num_experts;
    int64_t top_k;
    int64_t hidden;
    int64_t intermediate;
    int64_t normalises; /* whether a token's weights are divided by their sum */
    float scale;        /* of all weights */
    float eps;
    float alpha, limit, shift;
} Experts;

/* Computes x [T, hidden] += experts(norm(x)), and writes the router's choice to ids and weights [T, k]. */
API void octavo_experts_layer(const Experts *experts, float *x, int64_t tokens, int64_t *ids, float *weights);

/* Computes out [T, hidden] = experts(x) for choices that were made before. This is the seam `experts`. */
API void octavo_experts(const Experts *experts, const float *x, int64_t tokens, const int64_t *ids, const float *weights,
                    float *out);

/* Computes out [T, outputs] = x [T, inputs] times weight transposed. */
API void octavo_linear(const Weight *weight, const float *x, int64_t tokens, float *out);

/* Computes out [T, hidden] = x / rms(x) * weight. */
API void octavo_rms_norm(const float *x, const float *weight, float eps, int64_t tokens, int64_t hidden, float *out);

/* A Pass holds the tokens of one forward pass (see model/batch.py): of N sequences, the new tokens are the last ones. */
typedef struct {
    int64_t tokens;    /* T */
    int64_t sequences; /* N */
    const int64_t *slots;       /* [T], where each key and value is written; -1 writes nothing */
    const int32_t *q_starts;    /* [N + 1] */
    const int32_t *kv_lens;     /* [N]; 0 for rows of padding, which get zeros */
    const int32_t *block_table; /* [N, table_width] */
    int64_t table_width;
    int64_t block_size;
    int64_t window; /* positions that a token sees, its own included; 0: no limit */
} Pass;

/* A Rotation holds the rotary angles of a forward pass's positions (see model/layers.py). */
typedef struct {
    const float *cos; /* [T, D] */
    const float *sin; /* [T, D], the first half is negated */
} Rotation;

/* Heads are queries [T, Hq, D], keys and values [T, Hkv, D] of the new tokens. A stride is the floats between tokens. */
typedef struct {
    float *q, *k;
    const float *v;
    const float *sinks; /* [Hq], a further score for each query head, whose key has no value; or NULL */
    int64_t q_stride, k_stride, v_stride;
    int64_t num_heads, num_kv_heads, head_dim;
    float scale; /* of the products of queries and keys */
} Heads;

/* Pages keep one layer's keys and values, [num_blocks, block_size, Hkv, D] each. */
typedef struct {
    float *keys, *values;
} Pages;

/* Attention is that of one layer. A bias or a norm that the model does not have is NULL. */
typedef struct {
    const float *norm; /* [H] */
    Weight qkv;        /* [(Hq + 2 Hkv) * D, H] */
    Weight o;          /* [H, Hq * D] */
    const float *qkv_bias; /* [(Hq + 2 Hkv) * D] */
    const float *o_bias;   /* [H] */
    const float *q_norm, *k_norm; /* of each head, [D]; or of all heads together, [Hq * D] and [Hkv * D] */
    const float *sinks;           /* as in Heads */
    int64_t num_heads, num_kv_heads, head_dim;
    int64_t together; /* whether q_norm and k_norm are of all heads together */
    float eps;        /* of norm */
    float heads_eps;  /* of q_norm and k_norm */
    float clip;       /* the largest magnitude of a query, a key or a value before the rotation; 0: no limit */
    float scale;      /* as in Heads */
    float residual;   /* what multiplies all that is added to x */
} Attention;

/* Computes x [T, H] += o(attention(rotated qkv(norm(x)))), and writes the new keys and values to the pages. Between qkv and
 * the rotation come the bias, q_norm and k_norm, and the clip. */
API void octavo_attention_layer(const Attention *attention, const Pass *pass, const Rotation *rotation,
                                const Pages *pages, float *x);

/* Computes out [T, Hq * D] = causal attention. This is the seam `attention`. If there is a rotation, it first rotates q
 * and k in place. Keys and values that a token may not see never enter its sums, so they may be anything, even NaN. */
API void octavo_attention(const Heads *heads, const Pass *pass, const Rotation *rotation, const Pages *pages, float *out);

API void octavo_set_threads(int64_t threads);

/* A level is an instruction set; the best one is last. When the library is loaded, it finds out what the machine has. */
API int64_t octavo_level(void);
API int64_t octavo_set_level(int64_t level); /* It returns the level that is then in use. */
API const char *octavo_level_name(int64_t level);

/* Returns INTERFACE for item 0, then the size of each struct above, in their order, then 0. A caller compares them with
 * what it was written for. INTERFACE is the CRC-32 of this file's declarations; test_library.py says how to renew it.
 */
#define INTERFACE 0x9e228ca2
API int64_t octavo_interface(int64_t item);

#endif
