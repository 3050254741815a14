/* Defines the kernels' vector operations in AVX2 with FMA and F16C: two registers hold what 16 outputs need. */
#include <immintrin.h>
#include <stdint.h>

#define ROWS_AT_ONCE 4 /* in a chunk; its 8 integer registers, the weights and a product leave few of 16 */
#define COUNTS(CASE) CASE(1) CASE(2) CASE(3) CASE(4)
#define NARROW 1 /* Four products of bytes below 64 fit an int16 sum. */

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

/* Returns a + by where x > over, else a. */
static inline __m256 add_over(__m256 a, __m256 by, __m256 x, __m256 over) {
    return _mm256_add_ps(a, _mm256_and_ps(_mm256_cmp_ps(x, over, _CMP_GT_OQ), by));
}

static inline vf vf_add_over(vf a, vf by, vf x, vf over) {
    return BOTH(vf, add_over(a.lo, by.lo, x.lo, over.lo), add_over(a.hi, by.hi, x.hi, over.hi));
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

/* The next five read 16 numbers: signed and unsigned bytes, the lowest bits of bytes, bfloat16, and powers of two by their
 * exponents, of which 0 is the subnormal number 2^-127. */
static inline __m128i bytes_of_8(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)p); }
static inline __m256 floats_of(__m256i a) { return _mm256_cvtepi32_ps(a); }

static inline vf vf_from_int8(const uint8_t *p) {
    return BOTH(vf, floats_of(_mm256_cvtepi8_epi32(bytes_of_8(p))), floats_of(_mm256_cvtepi8_epi32(bytes_of_8(p + 8))));
}

static inline vf vf_from_uint8(const uint8_t *p) {
    return BOTH(vf, floats_of(_mm256_cvtepu8_epi32(bytes_of_8(p))), floats_of(_mm256_cvtepu8_epi32(bytes_of_8(p + 8))));
}

static inline __m256 low_bits(const uint8_t *p) {
    return floats_of(_mm256_cvtepu8_epi32(_mm_and_si128(bytes_of_8(p), _mm_set1_epi8(1))));
}

static inline vf vf_from_low_bits(const uint8_t *p) { return BOTH(vf, low_bits(p), low_bits(p + 8)); }

static inline __m256 bfloats(const uint8_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

static inline vf vf_from_bfloat(const uint8_t *p) { return BOTH(vf, bfloats(p), bfloats(p + 16)); }

static inline __m256 exponents(const uint8_t *p) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes_of_8(p)), 23);
    return _mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(1 << 22)));
}

static inline vf vf_from_exponents(const uint8_t *p) { return BOTH(vf, exponents(p), exponents(p + 8)); }

static inline vf vf_from_int(vi a) { return BOTH(vf, _mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)); }

static inline void vf_store_int8(int8_t *p, vf a) { /* whole numbers from -127 to 127 */
    const __m256i lo = _mm256_cvtps_epi32(a.lo), hi = _mm256_cvtps_epi32(a.hi);
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(low, high));
}

static inline vb vb_load(const uint8_t *p) {
    return BOTH(vb, _mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32)));
}

static inline void vb_store(uint8_t *p, vb a) {
    _mm256_storeu_si256((__m256i *)p, a.lo);
    _mm256_storeu_si256((__m256i *)(p + 32), a.hi);
}

static inline vb vb_low(vb a) {
    const __m256i nibble = _mm256_set1_epi8(15);
    return BOTH(vb, _mm256_and_si256(a.lo, nibble), _mm256_and_si256(a.hi, nibble));
}

static inline vb vb_high(vb a) {
    return vb_low(BOTH(vb, _mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)));
}

/* Returns a table of 16 bytes in the form that vb_lookup takes. */
static inline vb vb_table(const uint8_t *p) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return BOTH(vb, table, table);
}

static inline vb vb_lookup(vb table, vb at) {
    return BOTH(vb, _mm256_shuffle_epi8(table.lo, at.lo), _mm256_shuffle_epi8(table.hi, at.hi));
}

static inline vi vi_set1(int32_t x) { return BOTH(vi, _mm256_set1_epi32(x), _mm256_set1_epi32(x)); }

/* Returns what sums begin with: the dot products of bytes that are not narrow take 128 off again. */
static inline vi vi_begin(const int32_t *lift) {
    (void)lift;
    return vi_set1(0);
}

static inline __m256i four_bytes(const int8_t *p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
}

static inline __m256i add_pairs(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Multiplies bytes below 64 with signed ones. The sum of four products stays within int16: 4 * 63 * 127 = 32004. */
static inline __m256i add_narrow(__m256i sum, __m256i w, __m256i a, __m256i x, __m256i b) {
    return add_pairs(sum, _mm256_add_epi16(_mm256_maddubs_epi16(w, a), _mm256_maddubs_epi16(x, b)));
}

/* Multiplies weights stored as w + 128: |w| with the activations, which take w's signs. Where w is -128, |w| is 128 as an
 * unsigned byte, and two products reach 2 * 128 * 127, which is within int16. */
static inline __m256i add_wide(__m256i sum, __m256i w, __m256i a) {
    const __m256i weights = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return add_pairs(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(a, weights)));
}

/* Returns sum + w . a + x . b, where all outputs share 4 activations a and 4 b. */
static inline vi vi_dots(vi sum, vb w, const int8_t *a, vb x, const int8_t *b, int narrow) {
    const __m256i left = four_bytes(a), right = four_bytes(b);
    if (narrow) return BOTH(vi, add_narrow(sum.lo, w.lo, left, x.lo, right), add_narrow(sum.hi, w.hi, left, x.hi, right));
    return BOTH(vi, add_wide(add_wide(sum.lo, w.lo, left), x.lo, right), add_wide(add_wide(sum.hi, w.hi, left), x.hi, right));
}
