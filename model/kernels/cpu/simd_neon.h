/* Defines the kernels' vector operations in NEON with the dot products of Armv8.2: four registers hold what 16 outputs
 * need. */
#include <arm_neon.h>
#include <stdint.h>

#define ROWS_AT_ONCE 4 /* in a chunk; its 16 integer registers and the weights are 20 of 32 */
#define COUNTS(CASE) CASE(1) CASE(2) CASE(3) CASE(4)
#define NARROW 0 /* Dot products take any byte. */

#define ACROSS 2 /* queries by as many keys or registers of outputs; sums and factors take 28 of 32 registers */

typedef struct { float32x4_t at[4]; } vf; /* 16 floats */
typedef struct { int32x4_t at[4]; } vi;   /* 16 int32 */
typedef struct { uint8x16_t at[4]; } vb;  /* 64 bytes: 16 outputs of 4 inputs each */

#define EACH for (int n = 0; n < 4; n++)
#define MAP(type, expression)                                                                                         \
    {                                                                                                                  \
        type out;                                                                                                      \
        EACH out.at[n] = (expression);                                                                                 \
        return out;                                                                                                    \
    }

static inline vf vf_set1(float x) MAP(vf, vdupq_n_f32(x))
static inline vf vf_load(const float *p) MAP(vf, vld1q_f32(p + 4 * n))
static inline void vf_store(float *p, vf x) { EACH vst1q_f32(p + 4 * n, x.at[n]); }
static inline vf vf_add(vf a, vf b) MAP(vf, vaddq_f32(a.at[n], b.at[n]))
static inline vf vf_sub(vf a, vf b) MAP(vf, vsubq_f32(a.at[n], b.at[n]))
static inline vf vf_mul(vf a, vf b) MAP(vf, vmulq_f32(a.at[n], b.at[n]))
static inline vf vf_div(vf a, vf b) MAP(vf, vdivq_f32(a.at[n], b.at[n]))
static inline vf vf_fma(vf a, vf b, vf c) MAP(vf, vfmaq_f32(c.at[n], a.at[n], b.at[n]))
static inline vf vf_abs(vf a) MAP(vf, vabsq_f32(a.at[n]))
static inline vf vf_round(vf a) MAP(vf, vrndnq_f32(a.at[n]))
static inline vf vf_from_int(vi a) MAP(vf, vcvtq_f32_s32(a.at[n]))
/* The next five read 16 numbers: signed and unsigned bytes, the lowest bits of bytes, bfloat16, and powers of two by their
 * exponents, of which 0 is the subnormal number 2^-127. */
static inline uint32x4_t four_of(uint8x16_t bytes, int n) { /* Zeros come from beyond the table. */
    static const uint8_t PLACES[4][16] = {{0, 16, 16, 16, 1, 16, 16, 16, 2, 16, 16, 16, 3, 16, 16, 16},
                                          {4, 16, 16, 16, 5, 16, 16, 16, 6, 16, 16, 16, 7, 16, 16, 16},
                                          {8, 16, 16, 16, 9, 16, 16, 16, 10, 16, 16, 16, 11, 16, 16, 16},
                                          {12, 16, 16, 16, 13, 16, 16, 16, 14, 16, 16, 16, 15, 16, 16, 16}};
    return vreinterpretq_u32_u8(vqtbl1q_u8(bytes, vld1q_u8(PLACES[n])));
}

static inline vf vf_from_uint8(const uint8_t *p) MAP(vf, vcvtq_f32_u32(four_of(vld1q_u8(p), n)))
static inline vf vf_from_low_bits(const uint8_t *p) MAP(vf, vcvtq_f32_u32(four_of(vandq_u8(vld1q_u8(p), vdupq_n_u8(1)), n)))

static inline vf vf_from_int8(const uint8_t *p) {
    const uint8x16_t lifted = veorq_u8(vld1q_u8(p), vdupq_n_u8(128));
    vf out;
    EACH out.at[n] = vsubq_f32(vcvtq_f32_u32(four_of(lifted, n)), vdupq_n_f32(128));
    return out;
}

static inline vf vf_from_bfloat(const uint8_t *p)
    MAP(vf, vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + 8 * n)), 16)))

static inline vf vf_from_exponents(const uint8_t *p)
    MAP(vf, vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(four_of(vld1q_u8(p), n), 23), vdupq_n_u32(1 << 22))))

static inline vf vf_from_half(const uint16_t *p) MAP(vf, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * n))))

/* The instructions of these names are not used: given a NaN and a number, they would return the NaN in either order. */
static inline vf vf_max(vf a, vf b) MAP(vf, vbslq_f32(vcgtq_f32(a.at[n], b.at[n]), a.at[n], b.at[n]))
static inline vf vf_min(vf a, vf b) MAP(vf, vbslq_f32(vcltq_f32(a.at[n], b.at[n]), a.at[n], b.at[n]))

static inline float32x4_t add_over(float32x4_t a, float32x4_t by, float32x4_t x, float32x4_t over) {
    return vaddq_f32(a, vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(x, over), vreinterpretq_u32_f32(by))));
}

/* Returns a + by where x > over, else a. */
static inline vf vf_add_over(vf a, vf by, vf x, vf over) MAP(vf, add_over(a.at[n], by.at[n], x.at[n], over.at[n]))

static inline float vf_most(vf a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.at[0], a.at[1]), vmaxq_f32(a.at[2], a.at[3])));
}

/* Returns a times 2 to the n, where the result is a normal number: n is added to the exponent's bits. */
static inline float32x4_t times_power_of_2(float32x4_t a, float32x4_t n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
}

static inline vf vf_times_power_of_2(vf a, vf power) MAP(vf, times_power_of_2(a.at[n], power.at[n]))

static inline float64x2_t even_pairs(float32x4_t a, float32x4_t b) { return vreinterpretq_f64_f32(vtrn1q_f32(a, b)); }
static inline float64x2_t odd_pairs(float32x4_t a, float32x4_t b) { return vreinterpretq_f64_f32(vtrn2q_f32(a, b)); }

static inline float32x4_t sum_quarters(vf a) {
    return vaddq_f32(vaddq_f32(a.at[0], a.at[2]), vaddq_f32(a.at[1], a.at[3]));
}

/* Returns the sums of rows 0, 4, 8 and 12. */
static inline float32x4_t sums_of_4(const vf *rows) {
    const float32x4_t a = sum_quarters(rows[0]), b = sum_quarters(rows[4]);
    const float32x4_t c = sum_quarters(rows[8]), d = sum_quarters(rows[12]);
    const float64x2_t ab = even_pairs(a, b), cd = even_pairs(c, d), AB = odd_pairs(a, b), CD = odd_pairs(c, d);
    const float64x2_t columns[4] = {vtrn1q_f64(ab, cd), vtrn1q_f64(AB, CD), vtrn2q_f64(ab, cd), vtrn2q_f64(AB, CD)};
    const float32x4_t even = vaddq_f32(vreinterpretq_f32_f64(columns[0]), vreinterpretq_f32_f64(columns[2]));
    return vaddq_f32(even, vaddq_f32(vreinterpretq_f32_f64(columns[1]), vreinterpretq_f32_f64(columns[3])));
}

/* Returns 16 sums; number 4 r + n is that of row 4 n + r, whose halves are added, then the quarters, and so on. */
static inline vf vf_sums(const vf *rows) MAP(vf, sums_of_4(rows + n))

static inline void vf_store_int8(int8_t *p, vf a) { /* whole numbers from -127 to 127 */
    int16x4_t words[4];
    EACH words[n] = vqmovn_s32(vcvtq_s32_f32(a.at[n]));
    vst1_s8(p, vqmovn_s16(vcombine_s16(words[0], words[1])));
    vst1_s8(p + 8, vqmovn_s16(vcombine_s16(words[2], words[3])));
}

static inline vb vb_load(const uint8_t *p) MAP(vb, vld1q_u8(p + 16 * n))
static inline vb vb_low(vb a) MAP(vb, vandq_u8(a.at[n], vdupq_n_u8(15)))
static inline vb vb_high(vb a) MAP(vb, vshrq_n_u8(a.at[n], 4))

/* Returns sum + w . a of 4 by 4 signed bytes. It is volatile so that compilers keep these instructions in the order of the
 * products: in the order that they prefer, more weights are live than there are registers. */
static inline int32x4_t add_dots(int32x4_t sum, uint8x16_t w, int32x4_t a) {
    __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(a));
    return sum;
}

static inline void vb_store(uint8_t *p, vb a) { EACH vst1q_u8(p + 16 * n, a.at[n]); }

/* Returns a table of 16 bytes in the form that vb_lookup takes. */
static inline vb vb_table(const uint8_t *p) MAP(vb, vld1q_u8(p))
static inline vb vb_lookup(vb table, vb at) MAP(vb, vqtbl1q_u8(table.at[n], at.at[n]))

static inline vi vi_set1(int32_t x) MAP(vi, vdupq_n_s32(x))

/* Returns what sums begin with: the dot products take 128 off again. */
static inline vi vi_begin(const int32_t *lift) {
    (void)lift;
    return vi_set1(0);
}

/* Returns sum + w . a for 4 activations; the weights are stored as w + 128, and flipping the highest bit makes them w. */
static inline vi vi_dot(vi sum, vb w, const int8_t *a) {
    int32_t word;
    __builtin_memcpy(&word, a, 4);
    const int32x4_t shared = vdupq_n_s32(word);
    EACH sum.at[n] = add_dots(sum.at[n], veorq_u8(w.at[n], vdupq_n_u8(128)), shared);
    return sum;
}

/* Does so for two slices of weights and their activations. */
static inline vi vi_dots(vi sum, vb w, const int8_t *a, vb x, const int8_t *b, int narrow) {
    (void)narrow;
    return vi_dot(vi_dot(sum, w, a), x, b);
}
