/* avx512_emulated.h - AVX-512 without an AVX-512 processor: the intrinsics that twinkle_blas.h uses, by SIMD Everywhere (Debian's
   libsimde-dev) and, where it lacks one, by a loop.  more.sh includes it before a copy of twinkle_blas.h whose AVX-512 functions
   lost their target, so that the text of that kernel set is tested on any x86-64. */
#ifndef AVX512_EMULATED_H
#define AVX512_EMULATED_H
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <simde/x86/avx512.h>
#include <math.h>
#include <string.h>

#undef __m512
#undef __m512i
#undef __m512d
#define __m512  simde__m512
#define __m512i simde__m512i
#define __m512d simde__m512d

/* what a lane keeps where its mask has no bit: zero */
#define EMULATED_EACH(type, from, to, expression) \
    from x[16]; to y[16]; int i; type r; \
    memcpy(x, &a, sizeof a); memset(y, 0, sizeof y); \
    for (i = 0; i < 16; i++) if (mask >> i & 1) y[i] = (to)(expression); \
    memcpy(&r, y, sizeof r); return r;

static inline __m512 emulated_sqrt(__mmask16 mask, __m512 a) { EMULATED_EACH(__m512, float, float, sqrtf(x[i])) }
static inline __m512 emulated_roundscale(__mmask16 mask, __m512 a) { EMULATED_EACH(__m512, float, float, nearbyintf(x[i])) }
static inline __m512 emulated_abs(__m512 a) { const __mmask16 mask = 0xFFFF; EMULATED_EACH(__m512, float, float, fabsf(x[i])) }
static inline __m512i emulated_cvtps_epi32(__mmask16 mask, __m512 a) { EMULATED_EACH(__m512i, float, int32_t, _mm_cvtss_si32(_mm_set_ss(x[i]))) }
static inline __m512 emulated_cvtepi32_ps(__mmask16 mask, __m512i a) { EMULATED_EACH(__m512, int32_t, float, x[i]) }
static inline __m512i emulated_sll(__mmask16 mask, __m512i a, __m128i n) {
    int by = _mm_cvtsi128_si32(n);
    EMULATED_EACH(__m512i, uint32_t, uint32_t, by > 31 ? 0 : x[i] << by)
}
static inline __m512i emulated_srl(__mmask16 mask, __m512i a, __m128i n) {
    int by = _mm_cvtsi128_si32(n);
    EMULATED_EACH(__m512i, uint32_t, uint32_t, by > 31 ? 0 : x[i] >> by)
}
static inline __m512i emulated_cvtepu16(__mmask16 mask, __m256i a) { EMULATED_EACH(__m512i, uint16_t, uint32_t, x[i]) }
static inline __m256i emulated_cvtepi32_epi16(__mmask16 mask, __m512i a) { EMULATED_EACH(__m256i, uint32_t, uint16_t, x[i]) }
static inline __m128i emulated_cvtepi32_epi8(__mmask16 mask, __m512i a) { EMULATED_EACH(__m128i, uint32_t, uint8_t, x[i]) }
static inline __m512 emulated_cvtph(__mmask16 mask, __m256i a) {
    __m256 half[2];
    __m512 r;
    (void)mask;                                             /* all lanes, as used */
    half[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
    half[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
    memcpy(&r, half, sizeof r);
    return r;
}
static inline __m256i emulated_cvtps_ph(__m512 a) {
    __m256 half[2];
    memcpy(half, &a, sizeof half);
    return _mm256_set_m128i(_mm256_cvtps_ph(half[1], 0), _mm256_cvtps_ph(half[0], 0));
}
static inline __m512 emulated_loadu(__mmask16 mask, const float *p) {
    float y[16] = {0};
    __m512 r;
    int i;
    for (i = 0; i < 16; i++) if (mask >> i & 1) y[i] = p[i];
    memcpy(&r, y, sizeof r);
    return r;
}
static inline void emulated_storeu(float *p, __mmask16 mask, __m512 a) {
    float x[16];
    int i;
    memcpy(x, &a, sizeof x);
    for (i = 0; i < 16; i++) if (mask >> i & 1) p[i] = x[i];
}
static inline __m256 emulated_extract(__m512 a, int which) { __m256 half[2]; memcpy(half, &a, sizeof half); return half[which]; }
static inline __m512 emulated_shuffle(__m512 a, __m512 b, int pick) {
    float x[16], y[16], z[16];
    __m512 r;
    int i;
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (i = 0; i < 16; i++) z[i] = (i % 4 < 2 ? x : y)[i / 4 * 4 + (pick >> 2 * (i % 4) & 3)];
    memcpy(&r, z, sizeof r);
    return r;
}
static inline __m512 emulated_shuffle_quarters(__m512 a, __m512 b, int pick) {
    __m128 x[4], y[4], z[4];
    __m512 r;
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    z[0] = x[pick & 3]; z[1] = x[pick >> 2 & 3]; z[2] = y[pick >> 4 & 3]; z[3] = y[pick >> 6 & 3];
    memcpy(&r, z, sizeof r);
    return r;
}
/* vdpbf16ps as Intel's manual has it: two fused multiply-adds, of the upper halves and then of the lower ones; denormal numbers
   are zeros on the way in and on the way out. */
static inline float emulated_flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
static inline __m512 emulated_dpbf16(__m512 c, __m512i a, __m512i b) {
    uint32_t x[16], y[16], part;
    float sum[16], left, right;
    int i, half;
    memcpy(x, &a, sizeof x); memcpy(y, &b, sizeof y); memcpy(sum, &c, sizeof sum);
    for (i = 0; i < 16; i++)
        for (half = 1; half >= 0; half--) {
            part = half ? x[i] & 0xFFFF0000u : x[i] << 16; memcpy(&left, &part, sizeof left);
            part = half ? y[i] & 0xFFFF0000u : y[i] << 16; memcpy(&right, &part, sizeof right);
            sum[i] = emulated_flush(fmaf(emulated_flush(left), emulated_flush(right), emulated_flush(sum[i])));
        }
    memcpy(&c, sum, sizeof sum);
    return c;
}
/* AVX_VNNI's vpdpbusd: unsigned times signed bytes, four products to each 32-bit sum */
static inline __m256i emulated_dpbusd(__m256i c, __m256i a, __m256i b) {
    uint8_t x[32];
    int8_t y[32];
    int32_t sum[8];
    int i;
    memcpy(x, &a, sizeof x); memcpy(y, &b, sizeof y); memcpy(sum, &c, sizeof sum);
    for (i = 0; i < 32; i++) sum[i / 4] += x[i] * y[i];
    memcpy(&c, sum, sizeof sum);
    return c;
}
static inline __m512 emulated_permute(__m512 a, __m512i pick, __m512 b) {
    float x[32], y[16];
    int32_t at[16];
    int i;
    memcpy(x, &a, sizeof a); memcpy(x + 16, &b, sizeof b); memcpy(at, &pick, sizeof at);
    for (i = 0; i < 16; i++) y[i] = x[at[i] & 31];
    memcpy(&a, y, sizeof y);
    return a;
}
#undef  __m512bh
#define __m512bh __m512i
#undef  _mm512_dpbf16_ps
#define _mm512_dpbf16_ps(c, a, b)               emulated_dpbf16(c, a, b)
#undef  _mm512_permutex2var_ps
#define _mm512_permutex2var_ps(a, pick, b)      emulated_permute(a, pick, b)
#undef  _mm512_maskz_shuffle_f32x4
#define _mm512_maskz_shuffle_f32x4(m, a, b, pick) emulated_shuffle_quarters(a, b, pick)
#undef  _mm512_madd_epi16                                 /* its alias in SIMDe 0.7.4 wants the arguments of another function */
#define _mm512_madd_epi16(a, b)                 simde_mm512_madd_epi16(a, b)
#undef  _mm512_maskz_sqrt_ps
#define _mm512_maskz_sqrt_ps(m, a)              emulated_sqrt(m, a)
#undef  _mm512_abs_ps                                     /* SIMDe's leaves -0 as it is */
#define _mm512_abs_ps(a)                        emulated_abs(a)
#undef  _mm512_maskz_roundscale_ps
#define _mm512_maskz_roundscale_ps(m, a, how)   emulated_roundscale(m, a)
#undef  _mm512_maskz_cvtps_epi32
#define _mm512_maskz_cvtps_epi32(m, a)          emulated_cvtps_epi32(m, a)
#undef  _mm512_maskz_cvtepi32_ps
#define _mm512_maskz_cvtepi32_ps(m, a)          emulated_cvtepi32_ps(m, a)
#undef  _mm512_maskz_sll_epi32
#define _mm512_maskz_sll_epi32(m, a, n)         emulated_sll(m, a, n)
#undef  _mm512_maskz_srl_epi32
#define _mm512_maskz_srl_epi32(m, a, n)         emulated_srl(m, a, n)
#undef  _mm512_maskz_cvtepu16_epi32
#define _mm512_maskz_cvtepu16_epi32(m, a)       emulated_cvtepu16(m, a)
#undef  _mm512_maskz_cvtepi32_epi16
#define _mm512_maskz_cvtepi32_epi16(m, a)       emulated_cvtepi32_epi16((__mmask16)(m), a)
#undef  _mm512_maskz_cvtepi32_epi8
#define _mm512_maskz_cvtepi32_epi8(m, a)        emulated_cvtepi32_epi8((__mmask16)(m), a)
#undef  _mm512_maskz_cvtph_ps
#define _mm512_maskz_cvtph_ps(m, a)             emulated_cvtph(m, a)
#undef  _mm512_maskz_cvtps_ph
#define _mm512_maskz_cvtps_ph(m, a, how)        emulated_cvtps_ph(a)
#undef  _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(m, p)             emulated_loadu(m, p)
#undef  _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(p, m, a)          emulated_storeu(p, m, a)
#undef  _mm512_maskz_extractf32x8_ps
#define _mm512_maskz_extractf32x8_ps(m, a, h)   emulated_extract(a, h)
#undef  _mm512_maskz_shuffle_ps
#define _mm512_maskz_shuffle_ps(m, a, b, pick)  emulated_shuffle(a, b, pick)
#endif
