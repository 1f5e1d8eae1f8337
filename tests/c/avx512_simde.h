/* The AVX-512 unit on a CPU without AVX-512: force-included before src_c/isa/avx512.c, which is compiled with
 * -DCSM_AVX512_EMULATED and no -mavx512*.  SIMDe (Debian libsimde-dev) supplies most intrinsics from 256-bit ones;
 * those that version 0.7.4 lacks are implemented here, lane by lane.  FMA must be native: SIMDe's rounds twice. */
#ifndef CSM_TEST_AVX512_SIMDE_H
#define CSM_TEST_AVX512_SIMDE_H

#ifndef __FMA__
#error "compile with -mavx2 -mfma -mf16c: SIMDe's fmadd without FMA is not fused"
#endif
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#define KEEP_IN_REGISTER(v) ((void)(v))
#include <string.h>

/* Loads and stores lane by lane, without access where the mask is 0. */
#define LANES(TO, FROM, NAME, TYPE, WHICH)                                                           \
    static inline TO NAME##_lanes(TO fill, unsigned mask, const void *p) {                           \
        WHICH lane[sizeof(TO) / sizeof(WHICH)];                                                      \
        memcpy(lane, &fill, sizeof fill);                                                            \
        for (unsigned i = 0; i < sizeof(TO) / sizeof(WHICH); i++)                                    \
            if (mask >> i & 1) memcpy(&lane[i], (const char *)p + i * sizeof(WHICH), sizeof(WHICH)); \
        memcpy(&fill, lane, sizeof fill);                                                            \
        return fill;                                                                                 \
    }                                                                                                \
    static inline void NAME##_put(void *p, unsigned mask, TO v) {                                    \
        WHICH lane[sizeof(TO) / sizeof(WHICH)];                                                      \
        memcpy(lane, &v, sizeof v);                                                                  \
        for (unsigned i = 0; i < sizeof(TO) / sizeof(WHICH); i++)                                    \
            if (mask >> i & 1) memcpy((char *)p + i * sizeof(WHICH), &lane[i], sizeof(WHICH));       \
    }
LANES(simde__m512, float, emulated_ps, float, float)
LANES(simde__m512d, double, emulated_pd, double, double)
LANES(simde__m256i, short, emulated_epi16, short, short)
#undef LANES

#undef _mm512_mask_loadu_ps
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm512_mask_loadu_pd
#undef _mm512_maskz_loadu_pd
#undef _mm512_mask_storeu_pd
#undef _mm256_maskz_loadu_epi16
#undef _mm256_mask_storeu_epi16
#define _mm512_mask_loadu_ps(fill, mask, p) emulated_ps_lanes(fill, mask, p)
#define _mm512_maskz_loadu_ps(mask, p) emulated_ps_lanes(simde_mm512_setzero_ps(), mask, p)
#define _mm512_mask_storeu_ps(p, mask, v) emulated_ps_put(p, mask, v)
#define _mm512_mask_loadu_pd(fill, mask, p) emulated_pd_lanes(fill, mask, p)
#define _mm512_maskz_loadu_pd(mask, p) emulated_pd_lanes(simde_mm512_setzero_pd(), mask, p)
#define _mm512_mask_storeu_pd(p, mask, v) emulated_pd_put(p, mask, v)
#define _mm256_maskz_loadu_epi16(mask, p) emulated_epi16_lanes(simde_mm256_setzero_si256(), mask, p)
#define _mm256_mask_storeu_epi16(p, mask, v) emulated_epi16_put(p, mask, v)

/* Conversions, as two native halves. */
typedef union emulated_halves {
    simde__m512 ps;
    simde__m512d pd;
    simde__m512i i;
    simde__m256 half_ps[2];
    simde__m256d half_pd[2];
    simde__m256i half_i[2];
} emulated_halves;

static inline simde__m512d emulated_cvtps_pd(simde__m256 a) {
    emulated_halves u;
    u.half_pd[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    u.half_pd[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    return u.pd;
}
static inline simde__m256 emulated_cvtpd_ps(simde__m512d a) {
    emulated_halves u = {.pd = a};
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(u.half_pd[0])), _mm256_cvtpd_ps(u.half_pd[1]),
                                1);
}
static inline simde__m512 emulated_cvtph_ps(simde__m256i a) {
    emulated_halves u;
    u.half_ps[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
    u.half_ps[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
    return u.ps;
}
static inline simde__m256i emulated_cvtps_ph(simde__m512 a) {
    emulated_halves u = {.ps = a};
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(u.half_ps[0], 0)),
                                   _mm256_cvtps_ph(u.half_ps[1], 0), 1);
}
#define WIDEN_INTEGERS(NAME)                                         \
    static inline simde__m512i emulated_##NAME(simde__m256i a) {     \
        emulated_halves u;                                           \
        u.half_i[0] = _mm256_##NAME(_mm256_castsi256_si128(a));      \
        u.half_i[1] = _mm256_##NAME(_mm256_extracti128_si256(a, 1)); \
        return u.i;                                                  \
    }
WIDEN_INTEGERS(cvtepu16_epi32)
WIDEN_INTEGERS(cvtepi32_epi64)
WIDEN_INTEGERS(cvtepu32_epi64)
#undef WIDEN_INTEGERS
static inline simde__m256i emulated_cvtepi32_epi16(simde__m512i a) { /* truncates */
    int from[16];
    short to[16];
    simde__m256i v;
    memcpy(from, &a, 64);
    for (int i = 0; i < 16; i++) to[i] = (short)from[i];
    memcpy(&v, to, 32);
    return v;
}
/* Comparisons of 64-bit integers, which version 0.7.4 lacks. */
static inline simde__mmask8 emulated_cmp_epi64(simde__m512i a, simde__m512i b, int which) {
    long long first[8], second[8];
    unsigned mask = 0;
    memcpy(first, &a, 64);
    memcpy(second, &b, 64);
    for (int i = 0; i < 8; i++) /* else _MM_CMPINT_NLE */
        mask |= (unsigned)(which == _MM_CMPINT_NLT ? first[i] >= second[i] : first[i] > second[i]) << i;
    return (simde__mmask8)mask;
}
#undef _mm512_cmp_epi64_mask
#define _mm512_cmp_epi64_mask(a, b, which) emulated_cmp_epi64(a, b, which)

#undef _mm512_cvtepi32_epi64
#undef _mm512_cvtepu32_epi64
#define _mm512_cvtepi32_epi64(a) emulated_cvtepi32_epi64(a)
#define _mm512_cvtepu32_epi64(a) emulated_cvtepu32_epi64(a)
#undef _mm512_cvtps_pd
#undef _mm512_cvtpd_ps
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtps_pd(a) emulated_cvtps_pd(a)
#define _mm512_cvtpd_ps(a) emulated_cvtpd_ps(a)
#define _mm512_cvtph_ps(a) emulated_cvtph_ps(a)
#define _mm512_cvtps_ph(a, rounding) emulated_cvtps_ph(a) /* to nearest even, as the unit requires */
#define _mm512_cvtepu16_epi32(a) emulated_cvtepu16_epi32(a)
#define _mm512_cvtepi32_epi16(a) emulated_cvtepi32_epi16(a)

/* SIMDe has these, but not under their native names. */
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_f64x2
#undef _mm512_shuffle_i32x4
#undef _mm512_shuffle_i64x2
#define _mm512_shuffle_f32x4(a, b, which) simde_mm512_shuffle_f32x4(a, b, which)
#define _mm512_shuffle_f64x2(a, b, which) simde_mm512_shuffle_f64x2(a, b, which)
#define _mm512_shuffle_i32x4(a, b, which) simde_mm512_shuffle_i32x4(a, b, which)
#define _mm512_shuffle_i64x2(a, b, which) simde_mm512_shuffle_i64x2(a, b, which)

#endif
