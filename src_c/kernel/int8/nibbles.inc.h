/* Kernels of the leading four bits of codes, which lie together in an array of their own: half as many bytes for single
 * queries, which take as long as memory.
 *
 * Formula.  h = u / 16 of a code u in uint8 (q + 128); a byte holds h of a dimension in its lower half and that of the
 * fourth dimension after it in its upper one.  Codes of features are |a| <= 127.
 *   nibbles      h of two steps in each byte, and for each class the sum of (2 u - 32 h - 15)^2
 *   nibble_dots  I = sum of (32 h - 241) a: twice the product with the middle, 16 h + 7.5 - 128, of the codes with the
 *                same leading four bits
 *   nibble_scan  upper = (I factor + gap constant + reach norm) scale + bias',   bias' as in coarse.inc.h
 * src_c/ops/int8_coarse.c chooses factor, constant and norm, and proves the bounds.
 *
 * No saturation: products are added in 16 bits, at most eight pairs, 8 * 2 * 15 * 127 = 30,480 < 2^15.  No overflow:
 * |I| <= 241 * 127 * 2^16 < 2^31, and in between additions modulo 2^32 lose nothing.  So integers and floats are the
 * same on every instruction set.
 * Passes: one over the nibbles of a group.  Accumulators: int16 for eight steps, then int32.
 * NaN: an upper bound that is NaN keeps its class.
 */
#ifndef CSM_INT8_NIBBLES_INC_H
#define CSM_INT8_NIBBLES_INC_H

static void int8_nibbles(const uint8_t *codes, size_t steps, uint8_t *to, uint32_t *left) {
    enum { LINE = 4 * CSM_INT8_GROUP };
    uint32_t sum[LINE] = {0}; /* at most 225 * 2^16 */
    for (size_t s = 0; s < steps; s += 2) { /* without a second step: itself again, which is multiplied by 0 */
        const uint8_t *lower = codes + s * LINE, *upper = s + 1 < steps ? lower + LINE : lower;
        SIMD
        for (int b = 0; b < LINE; b++) {
            const int first = 2 * (lower[b] & 15) - 15, second = 2 * (upper[b] & 15) - 15;
            sum[b] += (uint32_t)(first * first + second * second);
            to[s / 2 * LINE + (size_t)b] = (uint8_t)(lower[b] >> 4 | (upper[b] & 0xf0));
        }
    }
    for (int i = 0; i < CSM_INT8_GROUP; i++) left[i] = sum[4 * i] + sum[4 * i + 1] + sum[4 * i + 2] + sum[4 * i + 3];
}

enum {
    CSM_INT8_LINES = CSM_INT8_SUMS / 2, /* whose products 16 bits hold */
    CSM_INT8_APART = 4 * CSM_INT8_VECTORS /* bytes between the codes of four dimensions of a query and the next four */
};

#if defined(CSM_VEC_AVX512_H) && !defined(CSM_AVX512_EMULATED)
INLINE void csm_int8_nibble_line(const uint8_t *nibbles, const int8_t *x, __m512i *sum) {
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i a = _mm512_set1_epi32(csm_int8_quad(x)), b = _mm512_set1_epi32(csm_int8_quad(x + CSM_INT8_APART));
    const __m512i both = _mm512_loadu_si512(nibbles), upper = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    *sum = _mm512_add_epi16(*sum, _mm512_maddubs_epi16(_mm512_and_si512(both, mask), a));
    *sum = _mm512_add_epi16(*sum, _mm512_maddubs_epi16(upper, b));
}
INLINE void csm_int8_nibble_dots(const uint8_t *nibbles, size_t lines, const int8_t *x, int32_t offset, int32_t *out) {
    __m512i total = _mm512_set1_epi32(offset);
    for (size_t begin = 0; begin < lines; begin += CSM_INT8_LINES) {
        __m512i sum = _mm512_setzero_si512();
        if (lines - begin >= CSM_INT8_LINES) {
            UNROLL
            for (size_t s = 0; s < CSM_INT8_LINES; s++)
                csm_int8_nibble_line(nibbles + 64 * (begin + s), x + 2 * CSM_INT8_APART * (begin + s), &sum);
        } else {
            for (size_t s = begin; s < lines; s++)
                csm_int8_nibble_line(nibbles + 64 * s, x + 2 * CSM_INT8_APART * s, &sum);
        }
        total = _mm512_add_epi32(total, _mm512_madd_epi16(sum, _mm512_set1_epi16(32)));
    }
    _mm512_storeu_si512(out, total);
}
#elif defined(CSM_VEC_AVX2_H)
INLINE void csm_int8_nibble_line(const uint8_t *nibbles, const int8_t *x, __m256i sum[2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i a = _mm256_set1_epi32(csm_int8_quad(x)), b = _mm256_set1_epi32(csm_int8_quad(x + CSM_INT8_APART));
    UNROLL
    for (int i = 0; i < 2; i++) {
        const __m256i both = _mm256_loadu_si256((const __m256i *)(nibbles + 32 * i));
        const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
        sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(_mm256_and_si256(both, mask), a));
        sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(upper, b));
    }
}
INLINE void csm_int8_nibble_dots(const uint8_t *nibbles, size_t lines, const int8_t *x, int32_t offset, int32_t *out) {
    const __m256i factor = _mm256_set1_epi16(32);
    __m256i total[2] = {_mm256_set1_epi32(offset), _mm256_set1_epi32(offset)};
    for (size_t begin = 0; begin < lines; begin += CSM_INT8_LINES) {
        __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        if (lines - begin >= CSM_INT8_LINES) {
            UNROLL
            for (size_t s = 0; s < CSM_INT8_LINES; s++)
                csm_int8_nibble_line(nibbles + 64 * (begin + s), x + 2 * CSM_INT8_APART * (begin + s), sum);
        } else {
            for (size_t s = begin; s < lines; s++)
                csm_int8_nibble_line(nibbles + 64 * s, x + 2 * CSM_INT8_APART * s, sum);
        }
        UNROLL
        for (int i = 0; i < 2; i++) total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(sum[i], factor));
    }
    _mm256_storeu_si256((__m256i *)out, total[0]);
    _mm256_storeu_si256((__m256i *)(out + 8), total[1]);
}
#elif defined(CSM_VEC_NEON_H)
INLINE void csm_int8_nibble_dots(const uint8_t *nibbles, size_t lines, const int8_t *x, int32_t offset, int32_t *out) {
    int32x4_t total[8];
    for (int i = 0; i < 8; i++) total[i] = vdupq_n_s32(0);
    for (size_t begin = 0; begin < lines; begin += CSM_INT8_LINES) {
        const size_t end = begin + csm_int8_block(lines - begin, CSM_INT8_LINES);
        int16x8_t sum[8];
        for (int i = 0; i < 8; i++) sum[i] = vdupq_n_s16(0);
        for (size_t s = begin; s < end; s++) {
            const int8_t *at = x + 2 * CSM_INT8_APART * s;
            const int8x8_t a = vreinterpret_s8_s32(vdup_n_s32(csm_int8_quad(at)));
            const int8x8_t b = vreinterpret_s8_s32(vdup_n_s32(csm_int8_quad(at + CSM_INT8_APART)));
            for (int i = 0; i < 8; i++) {
                const uint8x8_t both = vld1_u8(nibbles + 64 * s + 8 * i);
                sum[i] = vmlal_s8(sum[i], vreinterpret_s8_u8(vand_u8(both, vdup_n_u8(15))), a);
                sum[i] = vmlal_s8(sum[i], vreinterpret_s8_u8(vshr_n_u8(both, 4)), b);
            }
        }
        for (int i = 0; i < 8; i++) total[i] = vpadalq_s16(total[i], sum[i]);
    }
    for (int i = 0; i < 4; i++) {
        const int32x4_t pair = vshlq_n_s32(vpaddq_s32(total[2 * i], total[2 * i + 1]), 5);
        vst1q_s32(out + 4 * i, vaddq_s32(vdupq_n_s32(offset), pair));
    }
}
#else
INLINE void csm_int8_nibble_dots(const uint8_t *nibbles, size_t lines, const int8_t *x, int32_t offset, int32_t *out) {
    for (int i = 0; i < CSM_INT8_GROUP; i++) {
        uint32_t total = (uint32_t)offset;
        for (size_t s = 0; s < 2 * lines; s++)
            for (int b = 0; b < 4; b++) {
                const int both = nibbles[64 * (s / 2) + 4 * (size_t)i + (size_t)b];
                total += 32 * (uint32_t)((s % 2 ? both >> 4 : both & 15) * x[CSM_INT8_APART * s + (size_t)b]);
            }
        out[i] = (int32_t)total;
    }
}
#endif

static void int8_nibble_dots(const uint8_t *nibbles, size_t lines, const int8_t *x, int32_t offset, int32_t *out) {
    csm_int8_nibble_dots(nibbles, lines, x, offset, out);
}

/* Groups do not branch on what has been found: where some are kept and some not, waiting for the integers of one before
 * those of the next begin takes longer than the products. */
static void int8_nibble_scan(const csm_int8_scan *scan, size_t begin, size_t count, float *upper, uint16_t *reached) {
    const size_t lines = scan->lines, bytes = 64 * lines, ahead = scan->ahead;
    const csm_int8_filter *f = &scan->filter;
    const float zeros[CSM_INT8_GROUP] = {0};
    int32_t dots[CSM_INT8_GROUP];
    for (size_t g = begin; g < begin + count; g++) {
        const uint8_t *nibbles = scan->nibbles + g * bytes;
        const float *scale = scan->scale + g * CSM_INT8_GROUP;
        const float *bias = scan->bias ? scan->bias + g * CSM_INT8_GROUP : zeros;
        const float spread = scan->gap[g] * f->constant + scan->reach[g] * f->norm;
        unsigned bits = 0;
        if (g + ahead < scan->groups) {
            for (size_t at = 0; at < bytes; at += 64) PREFETCH(nibbles + ahead * bytes + at);
            PREFETCH(scale + CSM_INT8_GROUP * ahead);
            if (scan->bias) PREFETCH(bias + CSM_INT8_GROUP * ahead);
        }
        csm_int8_nibble_dots(nibbles, lines, scan->x, scan->offset, dots);
        UNROLL
        for (int i = 0; i < CSM_INT8_GROUP; i += v32_W) {
            v32_t u = v32_fma(csm_int8_float(dots + i), v32_set((double)f->factor), v32_set((double)spread));
            u = v32_fma(u, v32_load_f32(scale + i), csm_int8_bias(bias + i));
            v32_store_f32(upper + (g - begin) * CSM_INT8_GROUP + i, u);
            bits |= v32_bits(v32_not_le(u, v32_set((double)f->below))) << i;
        }
        reached[g - begin] = (uint16_t)bits;
    }
}

#endif
