#define LEVEL portable
#include "simd_portable.h"

#include "level.h"
