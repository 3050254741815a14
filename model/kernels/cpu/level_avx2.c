#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define LEVEL avx2
#include "simd_avx2.h"

#include "level.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
