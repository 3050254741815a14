/* Defines the kernels' vector operations in plain C, for processors without a header of their own. Compilers vectorise
 * some of it. */
#include <math.h>
#include <stdint.h>

#define ROWS_AT_ONCE 4 /* in a chunk */
#define COUNTS(CASE) CASE(1) CASE(2) CASE(3) CASE(4)
#define NARROW 0 /* Dot products take any byte. */

#define ACROSS 2 /* queries by as many keys or registers of outputs */

typedef struct { float at[16]; } vf;
typedef struct { int32_t at[16]; } vi;
typedef struct { uint8_t at[64]; } vb; /* 16 outputs of 4 inputs each */

#define EACH for (int n = 0; n < 16; n++)
#define MAP(expression)                                                                                               \
    {                                                                                                                  \
        vf out;                                                                                                        \
        EACH out.at[n] = (expression);                                                                                 \
        return out;                                                                                                    \
    }

static inline vf vf_set1(float x) MAP(x)
static inline vf vf_load(const float *p) MAP(p[n])
static inline void vf_store(float *p, vf x) { EACH p[n] = x.at[n]; }
static inline vf vf_add(vf a, vf b) MAP(a.at[n] + b.at[n])
static inline vf vf_sub(vf a, vf b) MAP(a.at[n] - b.at[n])
static inline vf vf_mul(vf a, vf b) MAP(a.at[n] * b.at[n])
static inline vf vf_div(vf a, vf b) MAP(a.at[n] / b.at[n])
static inline vf vf_max(vf a, vf b) MAP(a.at[n] > b.at[n] ? a.at[n] : b.at[n])
static inline vf vf_min(vf a, vf b) MAP(a.at[n] < b.at[n] ? a.at[n] : b.at[n])
static inline vf vf_fma(vf a, vf b, vf c) MAP(fmaf(a.at[n], b.at[n], c.at[n]))
static inline vf vf_abs(vf a) MAP(fabsf(a.at[n]))
static inline vf vf_round(vf a) MAP(rintf(a.at[n]))
static inline vf vf_times_power_of_2(vf a, vf power) MAP(ldexpf(a.at[n], (int)power.at[n]))
static inline vf vf_from_int(vi a) MAP((float)a.at[n])

/* Returns a + by where x > over, else a. */
static inline vf vf_add_over(vf a, vf by, vf x, vf over) MAP(x.at[n] > over.at[n] ? a.at[n] + by.at[n] : a.at[n])

static inline float vf_most(vf a) {
    float most = a.at[0];
    EACH most = a.at[n] > most ? a.at[n] : most;
    return most;
}

/* Returns 16 sums; number 4 r + n is that of row 4 n + r, whose halves are added, then the quarters, and so on. */
static inline vf vf_sums(const vf *rows) {
    vf out;
    for (int row = 0; row < 16; row++) {
        vf sum = rows[row];
        for (int width = 8; width; width /= 2) {
            for (int n = 0; n < width; n++) sum.at[n] += sum.at[n + width];
        }
        out.at[row % 4 * 4 + row / 4] = sum.at[0];
    }
    return out;
}

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    /* A multiplication rebases the exponent, which is right for subnormal numbers, too. */
    union { uint32_t bits; float value; } wide = {magnitude << 13};
    wide.value *= 0x1p112f;
    wide.bits |= sign;
    return wide.value;
}

/* The next five read 16 numbers: signed and unsigned bytes, the lowest bits of bytes, bfloat16, and powers of two by their
 * exponents, of which 0 is the subnormal number 2^-127. */
static inline vf vf_from_int8(const uint8_t *p) MAP((float)(int8_t)p[n])
static inline vf vf_from_uint8(const uint8_t *p) MAP((float)p[n])
static inline vf vf_from_low_bits(const uint8_t *p) MAP((float)(p[n] & 1))

static inline float float_of_bits(uint32_t bits) {
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
}

static inline vf vf_from_bfloat(const uint8_t *p) MAP(float_of_bits((uint32_t)p[2 * n] << 16 | (uint32_t)p[2 * n + 1] << 24))
static inline vf vf_from_exponents(const uint8_t *p) MAP(float_of_bits(p[n] ? (uint32_t)p[n] << 23 : 1u << 22))

static inline vf vf_from_half(const uint16_t *p) MAP(half_to_float(p[n]))

static inline void vf_store_int8(int8_t *p, vf a) { EACH p[n] = (int8_t)a.at[n]; }

static inline vb vb_load(const uint8_t *p) {
    vb out;
    __builtin_memcpy(out.at, p, 64);
    return out;
}

static inline vb vb_low(vb a) {
    for (int n = 0; n < 64; n++) a.at[n] &= 15;
    return a;
}

static inline vb vb_high(vb a) {
    for (int n = 0; n < 64; n++) a.at[n] >>= 4;
    return a;
}

static inline void vb_store(uint8_t *p, vb a) { __builtin_memcpy(p, a.at, 64); }

/* Returns a table of 16 bytes in the form that vb_lookup takes. */
static inline vb vb_table(const uint8_t *p) {
    vb out;
    for (int n = 0; n < 64; n++) out.at[n] = p[n % 16];
    return out;
}

static inline vb vb_lookup(vb table, vb at) {
    for (int n = 0; n < 64; n++) at.at[n] = table.at[at.at[n]];
    return at;
}

static inline vi vi_set1(int32_t x) {
    vi out;
    EACH out.at[n] = x;
    return out;
}

/* Returns what sums begin with: bytes are weights + 128, so 128 times the activations' sum is subtracted. */
static inline vi vi_begin(const int32_t *lift) { return vi_set1(*lift); }

/* Returns sum + w . a + x . b, where all outputs share 4 activations a and 4 b. */
static inline vi vi_dots(vi sum, vb w, const int8_t *a, vb x, const int8_t *b, int narrow) {
    (void)narrow;
    for (int n = 0; n < 64; n++) sum.at[n / 4] += (int32_t)w.at[n] * a[n % 4] + (int32_t)x.at[n] * b[n % 4];
    return sum;
}
