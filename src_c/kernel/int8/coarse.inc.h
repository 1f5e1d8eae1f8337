/* Coarse kernels of int8 output layers: integer products with codes of fewer bits, and upper bounds of scores that are
 * never below those of the full codes, so that what they drop the full codes would drop as well.
 *
 * Formula.  u is a code in uint8 (q + 128); codes of features are |a| <= 31.
 *   narrow_dots  I = sum of (8 (u / 4) - 253) a: twice the product with the middle, 4 (u / 4) + 1.5 - 128, of the codes
 *                with the same leading six bits
 *   test         upper = (I factor + constant) scale + bias' + residual n + norm e,
 *                bias' = bias + 2^-18 |bias| + 2^-116
 * src_c/ops/int8_coarse.c chooses factor, constant, n and e, and proves the bounds.
 *
 * No saturation: products are added in 16 bits, at most eight pairs, 8 * 2 * 63 * 31 = 31,248 < 2^15, before they are
 * widened.  That is the gain: 1.125 multiplications of 32 bytes instead of two.  No overflow: |I| <= 253 * 31 * 2^16 <
 * 2^31, and in between additions modulo 2^32 lose nothing.  So integers and floats are the same on every instruction
 * set.
 * Passes: one over the codes of a group for four vectors of queries.  Accumulators: int16 for eight steps, then int32.
 * NaN: an upper bound that is NaN keeps its class.
 * Measured (500,000 x 128, gaussian, AVX2): products of 64 queries 20.5 ms, those of full codes 31.
 */
#ifndef CSM_INT8_COARSE_INC_H
#define CSM_INT8_COARSE_INC_H

/* u / 4 of the codes of a group. */
static void int8_narrow(const uint8_t *codes, size_t steps, uint8_t *to) {
    SIMD
    for (size_t i = 0; i < 64 * steps; i++) to[i] = (uint8_t)(codes[i] >> 2);
}

/* Steps of the next block: sums of 16 bits hold the products of `most` steps. */
INLINE size_t csm_int8_block(size_t left, size_t most) { return left < most ? left : most; }

#if defined(CSM_VEC_AVX512_H) && !defined(CSM_AVX512_EMULATED)
#define CSM_INT8_COARSE(vectors)                                                                                       \
    do {                                                                                                               \
        __m512i total[vectors];                                                                                        \
        UNROLL                                                                                                         \
        for (int v = 0; v < (vectors); v++) total[v] = _mm512_set1_epi32(offset[v]);                                   \
        for (size_t begin = 0; begin < steps; begin += CSM_INT8_SUMS) {                                                \
            __m512i sum[vectors];                                                                                      \
            UNROLL                                                                                                     \
            for (int v = 0; v < (vectors); v++) sum[v] = _mm512_setzero_si512();                                       \
            const size_t end = begin + csm_int8_block(steps - begin, CSM_INT8_SUMS);                                   \
            for (size_t s = begin; s < end; s++) {                                                                     \
                const __m512i u = _mm512_loadu_si512(codes + 64 * s);                                                  \
                UNROLL                                                                                                 \
                for (int v = 0; v < (vectors); v++)                                                                    \
                    sum[v] = _mm512_add_epi16(                                                                         \
                        sum[v], _mm512_maddubs_epi16(                                                                  \
                                    u, _mm512_set1_epi32(csm_int8_quad(x + 4 * (CSM_INT8_VECTORS * s + (size_t)v))))); \
            }                                                                                                          \
            UNROLL                                                                                                     \
            for (int v = 0; v < (vectors); v++)                                                                        \
                total[v] = _mm512_add_epi32(total[v], _mm512_madd_epi16(sum[v], _mm512_set1_epi16(8)));                \
        }                                                                                                              \
        UNROLL                                                                                                         \
        for (int v = 0; v < (vectors); v++) _mm512_storeu_si512(out + CSM_INT8_GROUP * v, total[v]);                   \
    } while (0)
#elif defined(CSM_VEC_AVX2_H)
/* Adds the products of 16 bits to those of 32 in memory: with both in registers there are more than 16. */
INLINE void csm_int8_flush(int32_t *out, __m256i low, __m256i high, __m256i factor) {
    __m256i *to = (__m256i *)out;
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_madd_epi16(low, factor)));
    _mm256_storeu_si256(to + 1, _mm256_add_epi32(_mm256_loadu_si256(to + 1), _mm256_madd_epi16(high, factor)));
}
#define CSM_INT8_STEP(vectors, s)                                                                             \
    do {                                                                                                      \
        const __m256i first = _mm256_loadu_si256((const __m256i *)(codes + 64 * (s)));                        \
        const __m256i second = _mm256_loadu_si256((const __m256i *)(codes + 64 * (s) + 32));                  \
        UNROLL                                                                                                \
        for (int v = 0; v < (vectors); v++) {                                                                 \
            const __m256i a = _mm256_set1_epi32(csm_int8_quad(x + 4 * (CSM_INT8_VECTORS * (s) + (size_t)v))); \
            low[v] = _mm256_add_epi16(low[v], _mm256_maddubs_epi16(first, a));                                \
            high[v] = _mm256_add_epi16(high[v], _mm256_maddubs_epi16(second, a));                             \
            KEEP_IN_REGISTER(low[v]); /* GCC spills them otherwise: 33 instead of 20.5 ms for 64 queries */   \
            KEEP_IN_REGISTER(high[v]);                                                                        \
        }                                                                                                     \
    } while (0)
#define CSM_INT8_COARSE(vectors)                                                                 \
    do {                                                                                         \
        for (int v = 0; v < (vectors); v++)                                                      \
            for (int i = 0; i < CSM_INT8_GROUP; i++) out[CSM_INT8_GROUP * v + i] = offset[v];    \
        for (size_t begin = 0; begin < steps; begin += CSM_INT8_SUMS) {                          \
            __m256i low[vectors], high[vectors];                                                 \
            UNROLL                                                                               \
            for (int v = 0; v < (vectors); v++) low[v] = high[v] = _mm256_setzero_si256();       \
            if (steps - begin >= CSM_INT8_SUMS) {                                                \
                UNROLL                                                                           \
                for (size_t s = 0; s < CSM_INT8_SUMS; s++) CSM_INT8_STEP(vectors, begin + s);    \
            } else {                                                                             \
                for (size_t s = begin; s < steps; s++) CSM_INT8_STEP(vectors, s);                \
            }                                                                                    \
            UNROLL                                                                               \
            for (int v = 0; v < (vectors); v++)                                                  \
                csm_int8_flush(out + CSM_INT8_GROUP * v, low[v], high[v], _mm256_set1_epi16(8)); \
        }                                                                                        \
    } while (0)
#elif defined(CSM_VEC_NEON_H)
#define CSM_INT8_COARSE(vectors)                                                                                      \
    for (int v = 0; v < (vectors); v++) {                                                                             \
        int32x4_t total[8];                                                                                           \
        for (int i = 0; i < 8; i++) total[i] = vdupq_n_s32(0);                                                        \
        for (size_t begin = 0; begin < steps; begin += CSM_INT8_SUMS) {                                               \
            int16x8_t sum[8];                                                                                         \
            for (int i = 0; i < 8; i++) sum[i] = vdupq_n_s16(0);                                                      \
            const size_t end = begin + csm_int8_block(steps - begin, CSM_INT8_SUMS);                                  \
            for (size_t s = begin; s < end; s++) {                                                                    \
                const int8x8_t a =                                                                                    \
                    vreinterpret_s8_s32(vdup_n_s32(csm_int8_quad(x + 4 * (CSM_INT8_VECTORS * s + (size_t)v))));       \
                for (int i = 0; i < 8; i++)                                                                           \
                    sum[i] = vmlal_s8(sum[i], vreinterpret_s8_u8(vld1_u8(codes + 64 * s + 8 * i)), a);                \
            }                                                                                                         \
            for (int i = 0; i < 8; i++) total[i] = vpadalq_s16(total[i], sum[i]);                                     \
        }                                                                                                             \
        for (int i = 0; i < 4; i++)                                                                                   \
            vst1q_s32(out + CSM_INT8_GROUP * v + 4 * i,                                                               \
                      vaddq_s32(vdupq_n_s32(offset[v]), vshlq_n_s32(vpaddq_s32(total[2 * i], total[2 * i + 1]), 3))); \
    }
#else
#define CSM_INT8_COARSE(vectors)                                                                    \
    for (int v = 0; v < (vectors); v++)                                                             \
        for (int i = 0; i < CSM_INT8_GROUP; i++) {                                                  \
            uint32_t total = (uint32_t)offset[v];                                                   \
            for (size_t s = 0; s < steps; s++)                                                      \
                for (int b = 0; b < 4; b++)                                                         \
                    total += 8 * (uint32_t)((int32_t)codes[64 * s + 4 * (size_t)i + (size_t)b] *    \
                                            x[4 * (CSM_INT8_VECTORS * s + (size_t)v) + (size_t)b]); \
            out[CSM_INT8_GROUP * v + i] = (int32_t)total;                                           \
        }
#endif

static void int8_narrow_dots(const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors, const int32_t *offset,
                             int32_t *out) {
    for (size_t begin = 0; begin < vectors; begin += CSM_INT8_VECTORS) {
        if (vectors - begin == 1) {
            CSM_INT8_COARSE(1);
        } else if (vectors - begin == 2) {
            CSM_INT8_COARSE(2);
        } else {
            CSM_INT8_COARSE(CSM_INT8_VECTORS);
        }
        x += steps * 4 * CSM_INT8_VECTORS;
        offset += CSM_INT8_VECTORS;
        out += CSM_INT8_GROUP * CSM_INT8_VECTORS;
    }
}
#undef CSM_INT8_COARSE
#undef CSM_INT8_STEP

INLINE v32_t csm_int8_bias(const float *bias) {
    const v32_t b = v32_load_f32(bias);
    return v32_fma(csm_int8_abs(b), v32_set(0x1p-18), v32_add(b, v32_set(0x1p-116)));
}

static void int8_test(const csm_int8_filter *filter, size_t count, const csm_int8_group *group, const int32_t *dots,
                      uint16_t *reached) {
    enum { PER = CSM_INT8_GROUP / v32_W };
    v32_t scale[PER], bias[PER], residual[PER], norm[PER];
    for (int i = 0; i < PER; i++) {
        scale[i] = v32_load_f32(group->scale + i * v32_W);
        bias[i] = csm_int8_bias(group->bias + i * v32_W);
        residual[i] = v32_load_f32(group->residual + i * v32_W);
        norm[i] = v32_load_f32(group->norm + i * v32_W);
    }
    for (size_t n = 0; n < count; n++) {
        const csm_int8_filter *f = filter + n;
        const int32_t *from = dots + CSM_INT8_GROUP * n;
        unsigned bits = 0;
        UNROLL
        for (int i = 0; i < PER; i++) {
            v32_t upper =
                v32_fma(csm_int8_float(from + i * v32_W), v32_set((double)f->factor), v32_set((double)f->constant));
            upper = v32_fma(upper, scale[i], bias[i]);
            upper = v32_fma(residual[i], v32_set((double)f->residual), upper);
            upper = v32_fma(norm[i], v32_set((double)f->norm), upper);
            bits |= v32_bits(v32_not_le(upper, v32_set((double)f->below))) << (i * v32_W);
        }
        reached[n] = (uint16_t)bits;
    }
}

#endif
