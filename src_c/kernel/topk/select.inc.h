/* Selection in one compute type (float, double, or int64_t: integer.inc.h): a threshold that at least k numbers reach,
 * and the stable sort of the candidates.
 *
 * Keys are integers in the order of the numbers.  -0 is +0.  NaN comes before all numbers among the largest and after
 * all numbers among the smallest (whose numbers are negated; integers are complemented, because the least of them has
 * no negative), so that one descending order serves both.
 * Candidates with equal keys are in the order of their indices; every sort keeps that order.
 *
 * Passes: over candidates and maxima only; topk.inc.h reads the row.  A sort compares up to 128 candidates with one
 * another; more are sorted by their bytes, a pass for each byte in which they differ.
 * There is no arithmetic, except counting in exact floats, and therefore no rounding.
 */
#ifndef V
#error "select.inc.h needs V(name)"
#endif

#include "job.h"

#if defined(REAL_IS_INTEGER)
typedef int64_t V(key);
typedef uint64_t V(ukey);
enum { V(KEY_BITS) = 64 };
#define KEY_MAX INT64_MAX
#define KEY_MIN INT64_MIN
#define REAL_MAX INT64_MAX
#define REAL_MIN INT64_MIN
#define SET_REAL(x) V(set)(x)
INLINE V(key) V(key_of)(REAL x, const int smallest) { return smallest ? ~x : x; }
INLINE REAL V(of_key)(V(key) key) { return key; }
INLINE REAL V(below)(REAL x) { return x - 1; }
INLINE REAL V(bottom)(V(t) a) { return ~V(top)(V(reverse)(a)); } /* smallest lane */
#else
#if EXP_MANTISSA == 23
typedef int32_t V(key);
typedef uint32_t V(ukey);
enum { V(KEY_BITS) = 32 };
#define KEY_MAX INT32_MAX
#define KEY_MIN INT32_MIN
#else
typedef int64_t V(key);
typedef uint64_t V(ukey);
enum { V(KEY_BITS) = 64 };
#define KEY_MAX INT64_MAX
#define KEY_MIN INT64_MIN
#endif
#define REAL_MAX (REAL)CSM_INF
#define REAL_MIN -(REAL)CSM_INF
#define SET_REAL(x) V(set)((double)(x))
#define HAS_NAN 1

INLINE V(t) V(reverse)(V(t) a) { return V(sub)(V(zero)(), a); } /* of the opposite order */
INLINE REAL V(bottom)(V(t) a) { return -(REAL)V(top)(V(reverse)(a)); } /* smallest lane, no lane is NaN */
INLINE V(key) V(key_of)(REAL x, const int smallest) {
    V(key) key;
    if (x != x) return smallest ? KEY_MIN : KEY_MAX;
    x = smallest ? 0 - x : x + 0; /* never -0 */
    memcpy(&key, &x, sizeof key);
    return key ^ ((key >> (V(KEY_BITS) - 1)) & KEY_MAX);
}
INLINE REAL V(of_key)(V(key) key) {
    REAL x;
    key ^= (key >> (V(KEY_BITS) - 1)) & KEY_MAX;
    memcpy(&x, &key, sizeof x);
    return x;
}

/* The next smaller number; below 0 the negative number nearest to it. */
INLINE REAL V(below)(REAL x) {
    const V(key) key = V(key_of)(x, 0);
    return V(of_key)(key - 1 - (key == 0));
}
#endif

INLINE size_t V(count_chunk)(const REAL *m, size_t count, REAL t) { /* count must be exact in a float */
    V(t) a = V(zero)(), b = a, c = a, d = a, at = SET_REAL(t), ones = V(set)(1);
    size_t i = 0;
    for (; i + 4 * V(W) <= count; i += 4 * V(W)) {
        a = V(add)(a, V(keep)(V(ge)(V(LOAD_REAL)(m + i), at), ones));
        b = V(add)(b, V(keep)(V(ge)(V(LOAD_REAL)(m + i + V(W)), at), ones));
        c = V(add)(c, V(keep)(V(ge)(V(LOAD_REAL)(m + i + 2 * V(W)), at), ones));
        d = V(add)(d, V(keep)(V(ge)(V(LOAD_REAL)(m + i + 3 * V(W)), at), ones));
    }
    for (; i < count; i += V(W)) a = V(add)(a, V(keep)(V(ge)(V(LOAD_REAL)(m + i), at), ones));
    return (size_t)V(sum_exact)(V(add)(V(add)(a, b), V(add)(c, d)));
}
/* The number of m >= t, in whole vectors. */
INLINE size_t V(count_from)(const REAL *m, size_t count, REAL t, csm_select *s) {
    enum { CHUNK = 1 << 17 };
    size_t sum = 0;
    for (size_t i = 0; i < count && !s->is_stopped; i += CHUNK) {
        sum += V(count_chunk)(m + i, count - i < CHUNK ? count - i : CHUNK, t);
        if (count > CHUNK) s->is_stopped = csm_poll_stops(&s->poll, CHUNK / 2);
    }
    return sum;
}

/* A number t that at least k of the m reach, but not many more; no m is NaN.  exact: the k-th largest.
 * Up to RANKED numbers are ranked, and the one of rank k - 1 is returned; for more numbers the keys are bisected. */
static NOINLINE REAL V(threshold)(const REAL *m, size_t count, size_t k, int exact, csm_select *s) {
    enum { RANKED = 32, VECTORS = RANKED / V(W) };
    V(t) largest = SET_REAL(REAL_MIN), lowest = SET_REAL(REAL_MAX);
    if (count <= RANKED && k > 1) {
        V(t) v[VECTORS], above[VECTORS];
        const V(t) ones = V(set)(1), last = SET_REAL((REAL)(k - 1));
        for (size_t l = 0; l < VECTORS; l++) {
            v[l] = l * V(W) < count ? V(LOAD_REAL)(m + l * V(W)) : largest;
            above[l] = V(zero)();
        }
        for (size_t j = 0; j < count; j++) {
            const V(t) at = SET_REAL(m[j]);
            for (size_t l = 0; l < VECTORS; l++) above[l] = V(add)(above[l], V(keep)(V(not_le)(at, v[l]), ones));
        }
        for (size_t l = 0; l < VECTORS; l++)
            if (l * V(W) < count) lowest = V(min)(V(select)(V(ge)(last, above[l]), v[l], lowest), lowest);
        return V(bottom)(lowest);
    }
    for (size_t i = 0; i < count; i += V(W)) {
        V(t) v = V(LOAD_REAL)(m + i);
        largest = V(max)(v, largest);
        lowest = V(min)(v, lowest);
    }
    V(key) high = V(key_of)(V(top)(largest), 0), low = V(key_of)(V(bottom)(lowest), 0);
    if (k == 1) return V(of_key)(high);
    while (low < high) {
        V(key) middle = (V(key))((V(ukey))low + ((V(ukey))high - (V(ukey))low) / 2 + 1);
        if (middle > high) middle = high;
        size_t reached = V(count_from)(m, count, V(of_key)(middle), s);
        if (s->is_stopped) break;
        if (reached >= k) {
            low = middle;
            if (!exact && reached - k <= k / 16) break;
        } else {
            high = middle - 1;
        }
    }
    return V(of_key)(low);
}

INLINE void V(swap)(csm_select *s) { /* swaps the current arrays with the spare ones, which hold the sorted keys */
    void *key = s->key;
    int64_t *index = s->index;
    s->key = s->spare_key;
    s->spare_key = key;
    s->index = s->spare_index;
    s->spare_index = index;
}

/* Whether the call has been interrupted, for loops of steps: asks if one has been done. */
INLINE int V(stops_after)(csm_select *s, size_t done) {
    if (!(done > 0 && csm_poll_stops(&s->poll, CSM_POLL_STEP))) return 0;
    s->is_stopped = 1;
    return 1;
}

/* Writes to each page of the spare arrays, in order.  A step of the sort below writes to 256 places: if none of their
 * pages is there yet, that has taken a second on a virtual machine.  Returns 0 if the call has been interrupted. */
INLINE int V(touch)(csm_select *s) {
    enum { PAGE = 512 }; /* indices; pages have at least as many bytes */
    V(key) *key = (V(key) *)s->spare_key;
    for (size_t i = 0, pages = 0; i < s->count; i += PAGE) {
        key[i] = 0;
        s->spare_index[i] = 0;
        if (++pages % 8 == 0 && (s->is_stopped |= csm_poll_stops(&s->poll, 8 * PAGE * 4))) return 0;
    }
    return 1;
}

/* Sorts in descending order, stably: up to RANKED keys by counting the greater ones, more keys by a radix sort of their
 * bytes, the lowest first. */
static NOINLINE void V(sort)(csm_select *s) {
    enum { RANKED = CSM_SELECT_RANKED, TOUCHED = 1 << 20 };
    V(key) *key = (V(key) *)s->key;
    const size_t count = s->count;
    V(key) *to = (V(key) *)s->spare_key;
    int sorted = 1;
    for (size_t i = 1; i < count && sorted; i++) sorted = key[i - 1] >= key[i];
    if (sorted) return;
    if (count <= RANKED) {
        const size_t padded = (count + 15) / 16 * 16;
        V(key) before[RANKED]; /* number of greater keys */
        unsigned char same[RANKED];
        for (size_t i = count; i < padded; i++) key[i] = KEY_MIN;
        for (size_t i = 0; i < padded; i++) before[i] = same[i] = 0;
        for (size_t i = 0; i < count; i += 4) {
            const V(key) a = key[i], b = key[i + 1], c = key[i + 2], d = key[i + 3];
            SIMD
            for (size_t j = 0; j < padded; j++)
                before[j] += (V(key))((a > key[j]) + (b > key[j])) + ((c > key[j]) + (d > key[j]));
        }
        for (size_t i = 0; i < count; i++) {
            const size_t at = (size_t)before[i] + same[before[i]]++;
            to[at] = key[i];
            s->spare_index[at] = s->index[i];
        }
        V(swap)(s);
        return;
    }
    if (count > TOUCHED && !V(touch)(s)) return;
#define DIGIT(key, d) (255 - (((V(ukey))(key) ^ (V(ukey))KEY_MIN) >> 8 * (d) & 255))
    size_t (*places)[256] = *s->counts;
    for (size_t i = 0; i < sizeof(V(key)); i++) /* units call nothing of libc */
        for (size_t j = 0; j < sizeof *places / sizeof **places; j++) places[i][j] = 0;
    for (size_t begin = 0, end; begin < count; begin = end) {
        end = csm_poll_end(begin, count);
        if (V(stops_after)(s, begin)) return;
        for (size_t i = begin; i < end; i++)
            for (size_t d = 0; d < sizeof(V(key)); d++) places[d][DIGIT(key[i], d)]++;
    }
    for (size_t d = 0; d < sizeof(V(key)); d++) {
        const V(key) *from = (const V(key) *)s->key;
        const int64_t *index = s->index;
        if (places[d][DIGIT(from[0], d)] == count) continue; /* all have this digit */
        size_t sum = 0;
        for (size_t i = 0; i < 256; i++) {
            size_t here = places[d][i];
            places[d][i] = sum;
            sum += here;
        }
        to = (V(key) *)s->spare_key;
        int64_t *to_index = s->spare_index;
        for (size_t begin = 0, end; begin < count; begin = end) {
            end = csm_poll_end(begin, count);
            if (V(stops_after)(s, begin)) return;
            for (size_t i = begin; i < end; i++) {
                size_t at = places[d][DIGIT(from[i], d)]++;
                to[at] = from[i];
                to_index[at] = index[i];
            }
        }
        V(swap)(s);
    }
#undef DIGIT
}
