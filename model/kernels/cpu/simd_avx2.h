/* Defines the kernels' vector operations in AVX2 with FMA and F16C: two registers hold what 16 outputs need. */
#include <immintrin.h>
#include <stdint.h>

#define ROWS_AT_ONCE 4 /* in a tile product; its 8 integer registers, the weights and a product leave few of 16 */
#define COUNTS(CASE) CASE(1) CASE(2) CASE(3) CASE(4)
#define FEW 2 /* up to so many rows the processor fetches ahead by itself, see products.h */

#define ACROSS 2 /* queries by as many keys or registers of outputs; 8 registers hold the sums, the others the factors */

typedef struct { __m256 lo, hi; } vf;  /* 16 floats */
typedef struct { __m256i lo, hi; } vi; /* 16 int32 */
typedef struct { __m256i lo, hi; } vb; /* 64 bytes: 16 outputs of 4 inputs each */

#define BOTH(type, expression_lo, expression_hi) ((type){expression_lo, expression_hi})

static inline vf vf_set1(float x) { return BOTH(vf, _mm256_set1_ps(x), _mm256_set1_ps(x)); }
static inline vf vf_load(const float *p) { return BOTH(vf, _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
static inline vf vf_add(vf a, vf b) { return BOTH(vf, _mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
static inline vf vf_sub(vf a, vf b) { return BOTH(vf, _mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
static inline vf vf_mul(vf a, vf b) { return BOTH(vf, _mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
static inline vf vf_div(vf a, vf b) { return BOTH(vf, _mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
static inline vf vf_max(vf a, vf b) { return BOTH(vf, _mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
static inline vf vf_min(vf a, vf b) { return BOTH(vf, _mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }

static inline void vf_store(float *p, vf a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}

static inline vf vf_fma(vf a, vf b, vf c) {
    return BOTH(vf, _mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}

static inline vf vf_abs(vf a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return BOTH(vf, _mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi));
}

static inline float vf_most(vf a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static inline vf vf_round(vf a) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return BOTH(vf, _mm256_round_ps(a.lo, NEAREST), _mm256_round_ps(a.hi, NEAREST));
}

/* Returns a times 2 to the n, where the result is a normal number: n is added to the exponent's bits. */
static inline vf vf_times_power_of_2(vf a, vf n) {
    const __m256i lo = _mm256_slli_epi32(_mm256_cvtps_epi32(n.lo), 23);
    const __m256i hi = _mm256_slli_epi32(_mm256_cvtps_epi32(n.hi), 23);
    return BOTH(vf, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.lo), lo)),
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.hi), hi)));
}

/* Returns the sums of rows 0, 4, 8 and 12, then those of rows 1, 5, 9 and 13. */
static inline __m256 sums_of_8(const vf *rows) {
    enum { LOW = 0x20, HIGH = 0x31, EVEN = 0x88, ODD = 0xdd };
    __m256 quarters[4], eighths[2];
    _Pragma("GCC unroll 8") for (int n = 0; n < 4; n++) {
        const __m256 a = _mm256_add_ps(rows[4 * n].lo, rows[4 * n].hi);
        const __m256 b = _mm256_add_ps(rows[4 * n + 1].lo, rows[4 * n + 1].hi);
        quarters[n] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, LOW), _mm256_permute2f128_ps(a, b, HIGH));
    }
    _Pragma("GCC unroll 8") for (int n = 0; n < 2; n++) {
        const __m256d a = _mm256_castps_pd(quarters[2 * n]), b = _mm256_castps_pd(quarters[2 * n + 1]);
        const __m256 low = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), high = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        eighths[n] = _mm256_add_ps(low, high);
    }
    return _mm256_add_ps(_mm256_shuffle_ps(eighths[0], eighths[1], EVEN), _mm256_shuffle_ps(eighths[0], eighths[1], ODD));
}

/* Returns 16 sums; number 4 r + n is that of row 4 n + r, whose halves are added, then the quarters, and so on. */
static inline vf vf_sums(const vf *rows) { return BOTH(vf, sums_of_8(rows), sums_of_8(rows + 2)); }

static inline vf vf_from_half(const uint16_t *p) {
    return BOTH(vf, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}

static inline vf vf_from_int(vi a) { return BOTH(vf, _mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)); }

static inline void vf_store_int8(int8_t *p, vf a) { /* whole numbers from -127 to 127 */
    const __m256i lo = _mm256_cvtps_epi32(a.lo), hi = _mm256_cvtps_epi32(a.hi);
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(low, high));
}

static inline vi vi_zero(void) { return BOTH(vi, _mm256_setzero_si256(), _mm256_setzero_si256()); }

static inline vb vb_load(const uint8_t *p) {
    return BOTH(vb, _mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32)));
}

static inline vb vb_low(vb a) {
    const __m256i nibble = _mm256_set1_epi8(15);
    return BOTH(vb, _mm256_and_si256(a.lo, nibble), _mm256_and_si256(a.hi, nibble));
}

static inline vb vb_high(vb a) {
    return vb_low(BOTH(vb, _mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)));
}

static inline int32_t four_bytes(const int8_t *p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return word;
}

/* Returns sum + w . a of 32 unsigned by 32 signed bytes. The sum of two products must stay within int16: 2 * 127 * 127
 * does. */
static inline __m256i add_dots(__m256i sum, __m256i w, __m256i a) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}

/* Returns sum + w . a for weights from 0 to 15 and 4 activations, which all outputs share. */
static inline vi vi_dot4(vi sum, vb w, const int8_t *a) {
    const __m256i shared = _mm256_set1_epi32(four_bytes(a));
    return BOTH(vi, add_dots(sum.lo, w.lo, shared), add_dots(sum.hi, w.hi, shared));
}

/* Does the same for signed weights: it multiplies |w| with the activations, which take w's signs. */
static inline __m256i dot_signed(__m256i sum, __m256i w, __m256i a) {
    return add_dots(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}

static inline vi vi_begin8(int32_t activations) {
    (void)activations;
    return vi_zero();
}

static inline vi vi_dot8(vi sum, vb w, const int8_t *a) {
    const __m256i shared = _mm256_set1_epi32(four_bytes(a)), offset = _mm256_set1_epi8(-128);
    return BOTH(vi, dot_signed(sum.lo, _mm256_xor_si256(w.lo, offset), shared),
                dot_signed(sum.hi, _mm256_xor_si256(w.hi, offset), shared));
}
