#if defined(__aarch64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define LEVEL neon
#include "simd_neon.h"

#include "level.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
