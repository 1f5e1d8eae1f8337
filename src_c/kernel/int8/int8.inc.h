/* Kernels of int8 output layers (Int8Head): integer products of 16 classes with some queries, the bounds that follow
 * from them, and the exact product.
 *
 * Formula.  The codes of a class are q + 128 in uint8, |q| <= 127; those of a query are int8, |a| <= 63.
 *   dots     out = sum of q a, an exact integer
 *   bounds   z = fl(I) (scale factor) + bias,  I = 126 q a + q a2 or q a
 *            E = residual n + norm e + 2^-21 (|z| + |bias|) + 2^-118,  lower = z - E,  upper = z + E
 *   reach    whether upper is above the largest float below the threshold, or NaN
 *   exact    sum of w x in double
 * Passes: dots reads the codes of a group once for four vectors of queries; they stay in L1 for the next four.  A lane
 * of 32 bits is a class, so that nothing is added across lanes.
 *
 * No saturation.  vpmaddubsw adds two products of uint8 and int8 to an int16 and saturates beyond 2^15 - 1.  Here
 * u <= 255 and |a| <= 63, and the two products are of one class: |u1 a1 + u2 a2| <= 2 * 255 * 63 = 32,130 < 32,768.
 * vpmaddwd adds two of these exactly: at most 64,260.  vpdpbusd adds four products to an int32 without saturation
 * (vpdpbusds would saturate).  NEON and scalar multiply q itself: 127 * 63 * 2 = 16,002.  No overflow: |sum of q a|
 * <= 127 * 63 n < 2^31 for n <= 2^18, which the driver demands; u a in place of q a adds 128 * sum of a, which the
 * accumulators begin without, and in between additions modulo 2^32 lose nothing.  So the integers are the same
 * everywhere.
 *
 * Accumulators: int32.  exact: 8 lanes of double, element j in lane j mod 8, each a chain of fma, added in a fixed
 * tree.
 * The bounds hold because (u = 2^-24) fl(I), factor, scale factor, the product, the sum and the rounding of bias and of
 * z +- E err by at most 6 u (|z| + |bias|), which 2^-21 = 8 u covers with the rounding of E itself (the driver has
 * rounded n and e up by 2^-20, E's other roundings); underflow errs by less than 2^-118, because the driver refuses
 * factors below 2^-100.
 * NaN: a bound that is NaN keeps its class.  An infinite residual marks a class that is always kept.
 * Measured (tests/ops/test_int8.py): the error of z is at most 0.2 E on random weights, and equals E nearly where an
 * adversary sets the signs of all residuals; the error of the exact product is below n 2^-53 sum |w x|.
 */
#ifndef CSM_INT8_INC_H
#define CSM_INT8_INC_H

/* Four bytes of a vector of queries. */
INLINE int32_t csm_int8_quad(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return quad;
}

#if defined(CSM_VEC_AVX512_H) && !defined(CSM_AVX512_EMULATED)
#define CSM_INT8_DOTS(vectors)                                                                                  \
    do {                                                                                                        \
        __m512i sum[vectors];                                                                                   \
        UNROLL                                                                                                  \
        for (int v = 0; v < (vectors); v++) sum[v] = _mm512_set1_epi32(offset[v]);                              \
        for (size_t s = 0; s < steps; s++) {                                                                    \
            const __m512i codes4 = _mm512_loadu_si512(codes + 64 * s);                                          \
            UNROLL                                                                                              \
            for (int v = 0; v < (vectors); v++) {                                                               \
                const __m512i a = _mm512_set1_epi32(csm_int8_quad(x + 4 * (CSM_INT8_VECTORS * s + (size_t)v))); \
                CSM_INT8_ADD(sum[v], codes4, a);                                                                \
            }                                                                                                   \
        }                                                                                                       \
        UNROLL                                                                                                  \
        for (int v = 0; v < (vectors); v++) _mm512_storeu_si512(out + CSM_INT8_GROUP * v, sum[v]);              \
    } while (0)
#elif defined(CSM_VEC_AVX2_H)
#define CSM_INT8_DOTS(vectors)                                                                                  \
    do {                                                                                                        \
        __m256i low[vectors], high[vectors];                                                                    \
        UNROLL                                                                                                  \
        for (int v = 0; v < (vectors); v++) low[v] = high[v] = _mm256_set1_epi32(offset[v]);                    \
        for (size_t s = 0; s < steps; s++) {                                                                    \
            const __m256i first = _mm256_loadu_si256((const __m256i *)(codes + 64 * s));                        \
            const __m256i second = _mm256_loadu_si256((const __m256i *)(codes + 64 * s + 32));                  \
            UNROLL                                                                                              \
            for (int v = 0; v < (vectors); v++) {                                                               \
                const __m256i a = _mm256_set1_epi32(csm_int8_quad(x + 4 * (CSM_INT8_VECTORS * s + (size_t)v))); \
                CSM_INT8_ADD(low[v], first, a);                                                                 \
                CSM_INT8_ADD(high[v], second, a);                                                               \
            }                                                                                                   \
        }                                                                                                       \
        UNROLL                                                                                                  \
        for (int v = 0; v < (vectors); v++) {                                                                   \
            _mm256_storeu_si256((__m256i *)(out + CSM_INT8_GROUP * v), low[v]);                                 \
            _mm256_storeu_si256((__m256i *)(out + CSM_INT8_GROUP * v + 8), high[v]);                            \
        }                                                                                                       \
    } while (0)
#elif defined(CSM_VEC_NEON_H)
#define CSM_INT8_DOTS(vectors)                                                                                  \
    do {                                                                                                        \
        int32x4_t sum[vectors][8]; /* a pair of sums of each class */                                           \
        UNROLL                                                                                                  \
        for (int v = 0; v < (vectors); v++)                                                                     \
            for (int i = 0; i < 8; i++) sum[v][i] = vdupq_n_s32(0);                                             \
        for (size_t s = 0; s < steps; s++) {                                                                    \
            UNROLL                                                                                              \
            for (int v = 0; v < (vectors); v++) {                                                               \
                const int8x8_t a =                                                                              \
                    vreinterpret_s8_s32(vdup_n_s32(csm_int8_quad(x + 4 * (CSM_INT8_VECTORS * s + (size_t)v)))); \
                for (int i = 0; i < 8; i++) {                                                                   \
                    const uint8x8_t u = veor_u8(vld1_u8(codes + 64 * s + 8 * i), vdup_n_u8(128));               \
                    sum[v][i] = vpadalq_s16(sum[v][i], vmull_s8(vreinterpret_s8_u8(u), a));                     \
                }                                                                                               \
            }                                                                                                   \
        }                                                                                                       \
        UNROLL                                                                                                  \
        for (int v = 0; v < (vectors); v++)                                                                     \
            for (int i = 0; i < 4; i++)                                                                         \
                vst1q_s32(out + CSM_INT8_GROUP * v + 4 * i, vpaddq_s32(sum[v][2 * i], sum[v][2 * i + 1]));      \
        (void)offset;                                                                                           \
    } while (0)
#else
#define CSM_INT8_DOTS(vectors)                                                                          \
    do {                                                                                                \
        UNROLL                                                                                          \
        for (int v = 0; v < (vectors); v++)                                                             \
            for (int i = 0; i < CSM_INT8_GROUP; i++) out[CSM_INT8_GROUP * v + i] = 0;                   \
        for (size_t s = 0; s < steps; s++) UNROLL                                                       \
        for (int v = 0; v < (vectors); v++)                                                             \
            for (int i = 0; i < CSM_INT8_GROUP; i++)                                                    \
                for (int b = 0; b < 4; b++)                                                             \
                    out[CSM_INT8_GROUP * v + i] += ((int32_t)codes[64 * s + 4 * (size_t)i + b] - 128) * \
                                                   x[4 * (CSM_INT8_VECTORS * s + (size_t)v) + b];       \
        (void)offset;                                                                                   \
    } while (0)
#endif

/* One, two or four vectors at a time: three are computed as four. */
#define CSM_INT8_ALL_DOTS()                                              \
    for (size_t begin = 0; begin < vectors; begin += CSM_INT8_VECTORS) { \
        if (vectors - begin == 1) CSM_INT8_DOTS(1);                      \
        else if (vectors - begin == 2) CSM_INT8_DOTS(2);                 \
        else CSM_INT8_DOTS(CSM_INT8_VECTORS);                            \
        x += steps * 4 * CSM_INT8_VECTORS;                               \
        offset += CSM_INT8_VECTORS;                                      \
        out += CSM_INT8_GROUP * CSM_INT8_VECTORS;                        \
    }

#if defined(CSM_VEC_AVX512_H) && !defined(CSM_AVX512_EMULATED)
#define CSM_INT8_ADD(sum, u, a) \
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(u, a), _mm512_set1_epi16(1)))
#elif defined(CSM_VEC_AVX2_H)
#define CSM_INT8_ADD(sum, u, a) \
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, a), _mm256_set1_epi16(1)))
#endif
static void int8_dots(const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors, const int32_t *offset,
                      int32_t *out){CSM_INT8_ALL_DOTS()}
#undef CSM_INT8_ADD

#if defined(CSM_VEC_AVX512_H) && !defined(CSM_AVX512_EMULATED)
#define CSM_INT8_ADD(sum, u, a) sum = _mm512_dpbusd_epi32(sum, u, a)
/* A function of its own, because CPUs with AVX-512 but without VNNI exist, and a unit of its own would hold a second
 * copy of every kernel. */
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void int8_dots_vnni(const uint8_t *codes, size_t steps,
                                                                                  const int8_t *x, size_t vectors,
                                                                                  const int32_t *offset,
                                                                                  int32_t *out){CSM_INT8_ALL_DOTS()}
#undef CSM_INT8_ADD
#else
#define int8_dots_vnni NULL /* of the table: the CPU, or the compiler, does not have it */
#endif
#undef CSM_INT8_DOTS
#undef CSM_INT8_ALL_DOTS

/* Integers as floats. */
#if defined(CSM_VEC_AVX512_H) && !defined(CSM_AVX512_EMULATED)
INLINE v32_t csm_int8_float(const int32_t *p) {
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(p));
}
#elif defined(CSM_VEC_AVX2_H)
INLINE v32_t csm_int8_float(const int32_t *p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)p));
}
#elif defined(CSM_VEC_NEON_H)
INLINE v32_t csm_int8_float(const int32_t *p) {
    return vcvtq_f32_s32(vld1q_s32(p));
}
#else
INLINE v32_t csm_int8_float(const int32_t *p) {
    float to[v32_W];
    for (int i = 0; i < v32_W; i++) to[i] = (float)p[i];
    return v32_load_f32(to);
}
#endif

/* The integers as floats. */
INLINE const float *csm_int8_integers(const csm_int8_query *query, const int32_t *dots, float *to) {
    if (query->limbs == 1) {
        SIMD
        for (int i = 0; i < CSM_INT8_GROUP; i++) to[i] = (float)dots[i];
    } else if (!query->is_wide) {
        SIMD
        for (int i = 0; i < CSM_INT8_GROUP; i++) to[i] = (float)(CSM_INT8_SECOND * dots[i] + dots[CSM_INT8_GROUP + i]);
    } else {
        for (int i = 0; i < CSM_INT8_GROUP; i++)
            to[i] = (float)((int64_t)CSM_INT8_SECOND * dots[i] + dots[CSM_INT8_GROUP + i]);
    }
    return to;
}

INLINE v32_t csm_int8_abs(v32_t a) { return v32_max(a, v32_sub(v32_zero(), a)); }

/* z and E of some classes of a group. */
INLINE v32_t csm_int8_score(const csm_int8_query *q, const csm_int8_group *group, int i, v32_t integer, v32_t *bound) {
    const v32_t bias = v32_load_f32(group->bias + i);
    const v32_t factor = v32_mul(v32_load_f32(group->scale + i), v32_set((double)q->factor));
    const v32_t z = v32_add(v32_mul(integer, factor), bias);
    const v32_t spread = v32_add(v32_mul(v32_load_f32(group->residual + i), v32_set((double)q->residual)),
                                 v32_mul(v32_load_f32(group->norm + i), v32_set((double)q->norm)));
    const v32_t size = v32_add(csm_int8_abs(z), csm_int8_abs(bias));
    *bound = v32_add(v32_add(spread, v32_mul(v32_set(0x1p-21), size)), v32_set(0x1p-118));
    return z;
}

static void int8_reach(const csm_int8_query *query, size_t count, const csm_int8_group *group, const int32_t *dots,
                       uint16_t *kept) {
    float integers[CSM_INT8_GROUP];
    for (size_t n = 0; n < count; n++) {
        const csm_int8_query *q = query + n;
        const int32_t *from = dots + CSM_INT8_GROUP * q->vector;
        const v32_t below = v32_set((double)q->below);
        unsigned bits = 0;
        v32_t bound;
        if (q->limbs == 1) {
            UNROLL
            for (int i = 0; i < CSM_INT8_GROUP; i += v32_W) {
                const v32_t z = csm_int8_score(q, group, i, csm_int8_float(from + i), &bound);
                bits |= v32_bits(v32_not_le(v32_add(z, bound), below)) << i;
            }
            kept[n] = (uint16_t)bits;
            continue;
        }
        csm_int8_integers(q, from, integers);
        for (int i = 0; i < CSM_INT8_GROUP; i += v32_W) {
            const v32_t z = csm_int8_score(q, group, i, v32_load_f32(integers + i), &bound);
            bits |= v32_bits(v32_not_le(v32_add(z, bound), below)) << i;
        }
        kept[n] = (uint16_t)bits;
    }
}

static void int8_bounds(const csm_int8_query *q, const csm_int8_group *group, const int32_t *dots, float *lower,
                        float *upper) {
    float integers[CSM_INT8_GROUP];
    csm_int8_integers(q, dots + CSM_INT8_GROUP * q->vector, integers);
    for (int i = 0; i < CSM_INT8_GROUP; i += v32_W) {
        v32_t bound;
        const v32_t z = csm_int8_score(q, group, i, v32_load_f32(integers + i), &bound);
        v32_store_f32(lower + i, v32_sub(z, bound));
        v32_store_f32(upper + i, v32_add(z, bound));
    }
}
static double int8_exact(const double *w, const double *x, size_t n) {
    enum { LANES = 8, PER = LANES / v64_W };
    v64_t sum[PER];
    double lane[LANES];
    for (int v = 0; v < PER; v++) sum[v] = v64_zero();
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int v = 0; v < PER; v++)
            sum[v] = v64_fma(v64_load_f64(w + i + v * v64_W), v64_load_f64(x + i + v * v64_W), sum[v]);
    if (i < n) {
        double last[2][LANES] = {{0}, {0}};
        for (size_t j = 0; j < n - i; j++) { /* units call nothing of libc */
            last[0][j] = w[i + j];
            last[1][j] = x[i + j];
        }
        for (int v = 0; v < PER; v++)
            sum[v] = v64_fma(v64_load_f64(last[0] + v * v64_W), v64_load_f64(last[1] + v * v64_W), sum[v]);
    }
    for (int v = 0; v < PER; v++) v64_store_f64(lane + v * v64_W, sum[v]);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lane[j] = lane[j] + lane[j + half];
    return lane[0];
}

#endif
