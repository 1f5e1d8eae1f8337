/* Class hashing: buckets of 64-bit ids, and scores of classes from the numbers of their buckets.
 *
 *     t = first[r] lo + second[r] hi + add[r] mod 2^64,  lo and hi the halves of the id
 *     bucket_r = ((t >> 32) B) >> 32                     (pair multiply-shift: Dietzfelbinger 1996, Thorup 2015)
 *     score = (sum over r, or the least, of table_r[bucket_r]) / divisor + prior
 *
 * Passes: hash by hash over a block of classes, so that the table of one hash stays in L1; no table holds buckets.
 * Of consecutive ids t grows by first[r], because a block does not cross a multiple of 2^32: one addition in place of
 * two multiplications.  Eight rows whose tables lie side by side are gathered by one load for a class and hash.
 *
 * Accumulators: one float for each class, to which the hashes are added in their order.  All else is exact or rounded
 * once, so that the bits are the same everywhere.
 * NaN: a row whose tables hold NaN must hold nothing else; its scores are NaN.
 * Error: that of R - 1 additions, a division and an addition in float; without a prior measured 6.6 2^-24 of the mean
 * of the magnitudes for 16 hashes, 9.9 for 64.
 */
#ifndef CSM_HASHED_INC_H
#define CSM_HASHED_INC_H

INLINE uint64_t csm_hash_start(const csm_hash *h, size_t r, uint64_t id) {
    return h->first[r] * (id & 0xffffffff) + h->second[r] * (id >> 32) + h->add[r];
}
INLINE uint32_t csm_hash_bucket(const csm_hash *h, uint64_t t) { return (uint32_t)(((t >> 32) * h->buckets) >> 32); }

INLINE uint32_t csm_hash_of(const csm_hash *h, size_t r, uint64_t start, const uint64_t *ids, size_t i) {
    return csm_hash_bucket(h, ids ? csm_hash_start(h, r, ids[i]) : start + h->first[r] * (uint64_t)i);
}

#if defined(CSM_VEC_AVX2_H) || (defined(CSM_VEC_AVX512_H) && !defined(CSM_AVX512_EMULATED))
#define CSM_HASH_VECTORS 1

/* What the hashes of eight ids need.  B = 2^32 does not fit: the bucket is then t >> 32. */
typedef struct csm_hash_lanes {
    __m256i first, first_high, second, second_high, add, buckets;
    int is_whole;
} csm_hash_lanes;

INLINE __m256i csm_hash_broadcast(uint64_t a) { return _mm256_set1_epi64x((long long)a); }

INLINE csm_hash_lanes csm_hash_lanes_of(const csm_hash *h, size_t r) {
    return (csm_hash_lanes){csm_hash_broadcast(h->first[r]),
                            csm_hash_broadcast(h->first[r] >> 32),
                            csm_hash_broadcast(h->second[r]),
                            csm_hash_broadcast(h->second[r] >> 32),
                            csm_hash_broadcast(h->add[r]),
                            csm_hash_broadcast(h->buckets),
                            h->buckets >> 32 != 0};
}
/* a x mod 2^64 for x < 2^32 in the low halves; high: a >> 32. */
INLINE __m256i csm_hash_multiply(__m256i a, __m256i high, __m256i x) {
    return _mm256_add_epi64(_mm256_mul_epu32(a, x), _mm256_slli_epi64(_mm256_mul_epu32(high, x), 32));
}
INLINE __m256i csm_hash_start4(const csm_hash_lanes *l, const uint64_t *ids) {
    const __m256i x = _mm256_loadu_si256((const __m256i *)ids);
    const __m256i sum = _mm256_add_epi64(csm_hash_multiply(l->first, l->first_high, x), l->add);
    return _mm256_add_epi64(sum, csm_hash_multiply(l->second, l->second_high, _mm256_srli_epi64(x, 32)));
}
/* The buckets of eight t, in order. */
INLINE __m256i csm_hash_bucket8(const csm_hash_lanes *l, __m256i low, __m256i high) {
    if (!l->is_whole) {
        low = _mm256_mul_epu32(_mm256_srli_epi64(low, 32), l->buckets);
        high = _mm256_mul_epu32(_mm256_srli_epi64(high, 32), l->buckets);
    }
    const __m256 halves = _mm256_shuffle_ps(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high), 0xdd);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(halves), 0xd8);
}
/* Calls USE(i, buckets of eight ids) for whole groups of eight, and leaves i at the rest. */
#define CSM_HASH_EACH(h, r, begin, ids, n, i, USE)                                                                   \
    do {                                                                                                             \
        const csm_hash_lanes lanes = csm_hash_lanes_of(h, r);                                                        \
        if (ids) {                                                                                                   \
            for (; i + 8 <= (n); i += 8) {                                                                           \
                const __m256i low = csm_hash_start4(&lanes, (ids) + i);                                              \
                const __m256i high = csm_hash_start4(&lanes, (ids) + i + 4);                                         \
                USE(i, csm_hash_bucket8(&lanes, low, high));                                                         \
            }                                                                                                        \
        } else {                                                                                                     \
            const uint64_t a = (h)->first[r], t = csm_hash_start(h, r, begin);                                       \
            const __m256i four = csm_hash_broadcast(4 * a), eight = csm_hash_broadcast(8 * a);                       \
            __m256i low =                                                                                            \
                _mm256_set_epi64x((long long)(t + 3 * a), (long long)(t + 2 * a), (long long)(t + a), (long long)t); \
            for (; i + 8 <= (n); i += 8) {                                                                           \
                USE(i, csm_hash_bucket8(&lanes, low, _mm256_add_epi64(low, four)));                                  \
                low = _mm256_add_epi64(low, eight);                                                                  \
            }                                                                                                        \
        }                                                                                                            \
    } while (0)
#endif

static void hash_buckets(const csm_hash *h, size_t r, uint64_t begin, const uint64_t *ids, size_t n, uint32_t *to) {
    const uint64_t start = csm_hash_start(h, r, begin);
    size_t i = 0;
#ifdef CSM_HASH_VECTORS
#define USE(i, buckets) _mm256_storeu_si256((__m256i *)(to + (i)), buckets)
    CSM_HASH_EACH(h, r, begin, ids, n, i, USE);
#undef USE
#endif
    for (; i < n; i++) to[i] = csm_hash_of(h, r, start, ids, i);
}

/* The first table is written, the others are joined to it. */
INLINE float csm_hash_join(float a, float b, const int is_first, const int is_least) {
    if (is_first) return b;
    if (is_least) return b < a ? b : a;
    return a + b;
}

INLINE void csm_hash_table(const csm_hash *h, size_t r, const float *table, uint64_t begin, const uint64_t *ids,
                           size_t n, float *to, const int is_first, const int is_least) {
    const uint64_t start = csm_hash_start(h, r, begin);
    size_t i = 0;
#ifdef CSM_HASH_VECTORS
#define USE(i, buckets)                                                                \
    do {                                                                               \
        const __m256 found = _mm256_i32gather_ps(table, buckets, 4);                   \
        const __m256 old = is_first ? found : _mm256_loadu_ps(to + (i));               \
        __m256 sum = is_least ? _mm256_min_ps(found, old) : _mm256_add_ps(old, found); \
        _mm256_storeu_ps(to + (i), is_first ? found : sum);                            \
    } while (0)
    CSM_HASH_EACH(h, r, begin, ids, n, i, USE);
#undef USE
#endif
    for (; i < n; i++) to[i] = csm_hash_join(to[i], table[csm_hash_of(h, r, start, ids, i)], is_first, is_least);
}

/* Divides by the divisor and adds the prior. */
INLINE void csm_hash_finish(const csm_hash_rule *rule, uint64_t begin, const uint64_t *ids, size_t n, float *to) {
    const float divisor = rule->divisor;
    const float *prior = rule->prior;
    if (divisor != 1) {
        SIMD
        for (size_t i = 0; i < n; i++) to[i] = to[i] / divisor;
    }
    if (prior && ids) {
        for (size_t i = 0; i < n; i++) to[i] = to[i] + prior[ids[i]];
    } else if (prior) {
        SIMD
        for (size_t i = 0; i < n; i++) to[i] = to[i] + prior[begin + i];
    }
}

static void hash_scores(const csm_hash *h, const csm_hash_rule *rule, const float *tables, uint64_t begin,
                        const uint64_t *ids, size_t n, float *to) {
    csm_hash_table(h, 0, tables, begin, ids, n, to, 1, 0);
    for (size_t r = 1; r < h->hashes; r++) {
        if (rule->is_least) csm_hash_table(h, r, tables + r * rule->step, begin, ids, n, to, 0, 1);
        else csm_hash_table(h, r, tables + r * rule->step, begin, ids, n, to, 0, 0);
    }
    csm_hash_finish(rule, begin, ids, n, to);
}

INLINE void csm_hash_join_rows(float *sum, const float *table, const uint32_t *bucket, size_t n, const int is_first,
                               const int is_least) {
    for (size_t i = 0; i < n; i++) {
        const float *from = table + (size_t)bucket[i] * CSM_HASH_ROWS;
        float *to = sum + i * CSM_HASH_ROWS;
        SIMD
        for (int row = 0; row < CSM_HASH_ROWS; row++) to[row] = csm_hash_join(to[row], from[row], is_first, is_least);
    }
}

static void hash_scores_of_rows(const csm_hash *h, const csm_hash_rule *rule, const float *tables, uint64_t begin,
                                const uint64_t *ids, size_t n, size_t rows, float *const *to) {
    uint32_t bucket[CSM_HASH_PART];
    float sum[CSM_HASH_PART * CSM_HASH_ROWS];
    for (size_t first = 0, length; first < n; first += length) {
        length = n - first < CSM_HASH_PART ? n - first : CSM_HASH_PART;
        const uint64_t *at = ids ? ids + first : NULL;
        for (size_t r = 0; r < h->hashes; r++) {
            const float *table = tables + r * rule->step * CSM_HASH_ROWS;
            hash_buckets(h, r, begin + first, at, length, bucket);
            if (r == 0) csm_hash_join_rows(sum, table, bucket, length, 1, 0);
            else if (rule->is_least) csm_hash_join_rows(sum, table, bucket, length, 0, 1);
            else csm_hash_join_rows(sum, table, bucket, length, 0, 0);
        }
        for (size_t row = 0; row < rows; row++) {
            for (size_t i = 0; i < length; i++) to[row][first + i] = sum[i * CSM_HASH_ROWS + row];
            csm_hash_finish(rule, begin + first, at, length, to[row] + first);
        }
    }
}

#endif
