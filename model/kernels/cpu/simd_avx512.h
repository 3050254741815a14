/* Defines the kernels' vector operations in AVX512 with VNNI: one register holds what 16 outputs need. */
#include <immintrin.h>
#include <stdint.h>

#define ROWS_AT_ONCE 16 /* in a chunk; 16 integer sums and the weights take 18 of 32 registers */
#define COUNTS(CASE)                                                                                                  \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)   \
    CASE(15) CASE(16)
#define NARROW 0 /* Dot products take any byte. */

#define ACROSS 4 /* queries by as many keys or registers of outputs; 16 registers hold the sums, others the factors */

typedef __m512 vf;  /* 16 floats */
typedef __m512i vi; /* 16 int32 */
typedef __m512i vb; /* 64 bytes: 16 outputs of 4 inputs each */

static inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
static inline float vf_most(vf a) { return _mm512_reduce_max_ps(a); }
static inline vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_times_power_of_2(vf a, vf n) { return _mm512_scalef_ps(a, n); }

/* Returns a + by where x > over, else a. */
static inline vf vf_add_over(vf a, vf by, vf x, vf over) {
    return _mm512_mask_add_ps(a, _mm512_cmp_ps_mask(x, over, _CMP_GT_OQ), a, by);
}

/* Returns 16 sums; number 4 r + n is that of row 4 n + r, whose halves are added, then the quarters, and so on. */
static inline vf vf_sums(const vf *rows) {
    enum { LOW = 0x44, HIGH = 0xee, EVEN = 0x88, ODD = 0xdd };
    vf halves[8], quarters[4], eighths[2];
    _Pragma("GCC unroll 8") for (int n = 0; n < 8; n++) {
        const vf a = rows[2 * n], b = rows[2 * n + 1];
        halves[n] = vf_add(_mm512_shuffle_f32x4(a, b, LOW), _mm512_shuffle_f32x4(a, b, HIGH));
    }
    _Pragma("GCC unroll 8") for (int n = 0; n < 4; n++) {
        const vf a = halves[2 * n], b = halves[2 * n + 1];
        quarters[n] = vf_add(_mm512_shuffle_f32x4(a, b, EVEN), _mm512_shuffle_f32x4(a, b, ODD));
    }
    _Pragma("GCC unroll 8") for (int n = 0; n < 2; n++) {
        const __m512d a = _mm512_castps_pd(quarters[2 * n]), b = _mm512_castps_pd(quarters[2 * n + 1]);
        eighths[n] = vf_add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return vf_add(_mm512_shuffle_ps(eighths[0], eighths[1], EVEN), _mm512_shuffle_ps(eighths[0], eighths[1], ODD));
}

static inline vf vf_from_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
/* The next five read 16 numbers: signed and unsigned bytes, the lowest bits of bytes, bfloat16, and powers of two by their
 * exponents, of which 0 is the subnormal number 2^-127. */
static inline __m128i bytes_of_16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline vf vf_from_int8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes_of_16(p))); }
static inline vf vf_from_uint8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes_of_16(p))); }

static inline vf vf_from_low_bits(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(bytes_of_16(p), _mm_set1_epi8(1))));
}

static inline vf vf_from_bfloat(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

static inline vf vf_from_exponents(const uint8_t *p) {
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes_of_16(p)), 23);
    return _mm512_castsi512_ps(_mm512_max_epi32(bits, _mm512_set1_epi32(1 << 22)));
}

static inline vf vf_from_int(vi a) { return _mm512_cvtepi32_ps(a); }

static inline void vf_store_int8(int8_t *p, vf a) { /* whole numbers from -127 to 127 */
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

static inline vb vb_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
static inline void vb_store(uint8_t *p, vb a) { _mm512_storeu_si512(p, a); }
static inline vb vb_low(vb a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline vb vb_high(vb a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }

/* Returns a table of 16 bytes in the form that vb_lookup takes. */
static inline vb vb_table(const uint8_t *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
static inline vb vb_lookup(vb table, vb at) { return _mm512_shuffle_epi8(table, at); }

static inline vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }

/* Returns what sums begin with. VNNI multiplies unsigned bytes by signed ones, so the bytes are weights + 128. This adds
 * 128 times the activations' sum, which is subtracted here. */
static inline vi vi_begin(const int32_t *lift) { return _mm512_set1_epi32(*lift); }

/* Returns sum + w . a for 4 activations, which all outputs share. One instruction broadcasts and multiplies, where compilers
 * would take two: the fewer there are, the further ahead the processor fetches weights. */
static inline vi vi_dot(vi sum, vb w, const int8_t *a) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const int8_t(*)[4])a));
    return sum;
}

/* Does so for two slices of weights and their activations. */
static inline vi vi_dots(vi sum, vb w, const int8_t *a, vb x, const int8_t *b, int narrow) {
    (void)narrow;
    return vi_dot(vi_dot(sum, w, a), x, b);
}
