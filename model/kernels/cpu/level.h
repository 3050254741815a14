/* Holds all kernels for one instruction set. The including file has included its simd_*.h and defined LEVEL, its name. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__ /* With a number, clang would unroll only loops of that length, and leave the arrays of others in memory. */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#include "activations.h"

#include "numbers.h"

#include "products.h"

#include "router.h"

#include "experts.h"
#include "linear.h"
#include "quantise.h"

#include "softmax.h"

#include "attention_tile.h"

#include "attention.h"

#include "attention_layer.h"

#define JOINED(a, b) a##b
#define NAMED(level) JOINED(octavo_, level)
#define STRING(name) #name
#define QUOTED(name) STRING(name)

const Kernels NAMED(LEVEL) = {
    .name = QUOTED(LEVEL),
    .quantise = quantise,
    .rms_norm = rms_norm,
    .linear = linear,
    .attention = attention,
    .attention_layer = attention_layer,
    .experts = experts,
    .experts_layer = experts_layer,
};
