/* Lists of rankings: their order, and loss and gradient of a long list, and of short lists side by side.
 *
 *   places    place(i) = number of j with key(j) > key(i), or key(j) = key(i) and j < i
 *   e         e^z (1 + low) 2^-n,  z + low = (x - max) / T, low = 0 and max = 0 where T is a power of two
 *   terms     S(i) = e(i) + S(i + 1),  rho(i) = S(i + 1) / e(i),  loss = log of the product of 1 + rho(i),
 *             grad(i) = e(i) C(i) - S(i + 1) / S(i),  C(i + 1) = C(i) + 1 / S(i)
 *   ties      others(i) = S(i + 1) + sum of the e before i in its group,  rho(i) = others(i) / e(i); a group has 1 / S
 *             of its first element and weight d / S, where d of its elements count,
 *             grad(i) = e(i) (C + (d - [i counts]) / S) - [i counts] others(i) / S,  C: weights of the groups before
 *
 * Passes: places compares each key with all others, in vectors, without branches that depend on the keys.  Only the
 * keys of at most key(i) are counted: their sum tells of ties, and NaN is at most nothing.  Terms of a long list pass
 * once from the last element to the first, once in vectors for the quotients, and once back; sums of four elements at a
 * time keep the chains of additions short.  Lists side by side pass back and forth, one list in each lane.
 * Accumulators: doubles.  The product less 1, q + rho + q rho, is in 8 lanes (i mod 8) of a long list, multiplied in a
 * fixed tree; a lane above 2^100 is turned into its logarithm.  Side by side a list has one, whose power of two is
 * taken out above 2^100.  So every instruction set has the same bits.
 * NaN, infinities and elements of -inf give a lane a loss of NaN; terms never see them.  Error: ops/rankings_terms.c.
 */
#ifndef SIMD
#error "rankings.inc.h needs SIMD"
#endif

static const float ranking_lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* W relevances as floats, NaN behind the last; bits of those that floats hold are left in same. */
INLINE v32_t ranking_keys(const double *relevance, size_t n, unsigned *same) {
    enum { VECTORS = v32_W / v64_W };
    v64_t wide[VECTORS], again[VECTORS];
    UNROLL
    for (int v = 0; v < VECTORS; v++, n = n < v64_W ? 0 : n - v64_W, relevance += v64_W)
        wide[v] = n >= v64_W ? v64_load_f64(relevance) : v64_load_part_f64(relevance, n, v64_set(CSM_NAN));
    const v32_t key = v32_narrow(wide);
    v32_widen(key, again);
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        *same &= v64_bits(v64_eq(wide[v], again[v])) | v64_bits(v64_unordered(wide[v], wide[v]));
    return key;
}

/* Numbers of equal keys before each. */
INLINE void ranking_tied(const float *key, size_t n, float *counts) {
    const v32_t zero = v32_zero(), one = v32_set(1);
    for (size_t i = 0; i < n; i += v32_W) {
        const v32_t own = v32_load_f32(key + i);
        const size_t end = i + v32_W < n ? i + v32_W : n;
        v32_t equal = zero, beside = zero, distance = v32_add(v32_load_f32(ranking_lanes), v32_set((double)i));
        for (size_t j = 0; j < end; j++) { /* the sums take turns */
            const v32_t before = v32_keep(v32_not_le(distance, zero), one), sum = beside;
            beside = v32_add(equal, v32_keep(v32_eq(own, v32_set((double)key[j])), before));
            equal = sum;
            distance = v32_sub(distance, one);
        }
        v32_store_f32(counts + i, v32_add(equal, beside));
    }
}

/* Numbers of keys that are at most key i, key i + 1, ..., of `count` vectors; adds them to pairs. */
INLINE void ranking_count(const int count, const float *key, size_t n, size_t i, float *counts, v32_t *pairs) {
    v32_t own[2], at_most[2], beside[2];
    const v32_t one = v32_set(1);
#define EACH \
    UNROLL   \
    for (int v = 0; v < count; v++)
    EACH own[v] = v32_load_f32(key + i + v * v32_W);
    EACH at_most[v] = beside[v] = v32_zero();
    for (size_t j = 0; j < n; j += 4) { /* keys behind the last are NaN */
        UNROLL
        for (size_t k = 0; k < 4; k += 2) {
            const v32_t a = v32_set((double)key[j + k]), b = v32_set((double)key[j + k + 1]);
            EACH at_most[v] = v32_add(at_most[v], v32_keep(v32_ge(own[v], a), one));
            EACH beside[v] = v32_add(beside[v], v32_keep(v32_ge(own[v], b), one));
        }
    }
    EACH {
        at_most[v] = v32_add(at_most[v], beside[v]);
        *pairs = v32_add(*pairs, at_most[v]);
        v32_store_f32(counts + i + v * v32_W, at_most[v]);
    }
#undef EACH
}

/* Rows of keys with these counts, in whole vectors. */
INLINE void ranking_rows(const float *counts, size_t n, int32_t members, int32_t *row) {
    for (size_t i = 0; i < n; i += v32_W) {
        SIMD
        for (size_t k = i; k < i + v32_W; k++) row[k] = (members - (int32_t)counts[k]) * CSM_RANKING_LANES;
    }
}

static size_t ranking_places(const void *relevance, int is_single, size_t n, csm_ranking_order *order) {
    float key[CSM_RANKING_COUNTED + CSM_RANKING_PAD], counts[CSM_RANKING_COUNTED + CSM_RANKING_PAD];
    const unsigned all = (1u << v64_W) - 1;
    unsigned same = all;
    v32_t ordered = v32_zero(), pairs = v32_zero();
    size_t i = 0;
    for (; i < n; i += v32_W) {
        const float *narrow = (const float *)relevance + i;
        v32_t own;
        if (!is_single) own = ranking_keys((const double *)relevance + i, n - i, &same);
        else if (n - i < v32_W) own = v32_load_part_f32(narrow, n - i, v32_set(CSM_NAN));
        else own = v32_load_f32(narrow);
        ordered = v32_add(ordered, v32_keep(v32_ordered(own), v32_set(1)));
        v32_store_f32(key + i, own);
    }
    if (same != all) return SIZE_MAX;
    for (size_t j = i; j < i + 3; j++) key[j] = (float)CSM_NAN;
    for (i = 0; i + v32_W < n; i += 2 * v32_W) ranking_count(2, key, n, i, counts, &pairs);
    if (i < n) ranking_count(1, key, n, i, counts, &pairs);
    const int32_t members = (int32_t)v32_sum_exact(ordered);
    ranking_rows(counts, n, members, order->row);
    order->has_ties = v32_sum_exact(pairs) != (double)(members * (members + 1) / 2);
    if (order->has_ties) {
        memcpy(order->group, order->row, sizeof order->group);
        ranking_tied(key, n, counts);
        for (i = 0; i < n; i++) order->row[i] += (int32_t)counts[i] * CSM_RANKING_LANES;
    }
    return (size_t)members;
}

/* (1 + a) (1 + b) - 1; what no longer fits is added to *log. */
INLINE double ranking_times(double a, double b, double *log) {
    const double q = (a + b) + a * b;
    if (q <= 0x1p100) return q;
    *log += csm_log1p(q, 0);
    return 0;
}

static int ranking_terms(const csm_poll *poll, double *e, size_t n, double *sum, double *inverse, double *grad,
                         double *loss) {
    enum { VECTORS = 8 / v64_W };
    double behind = 0, before = 0, log = 0, lane[8];
    v64_t q[VECTORS];
    for (size_t i = n; i < n + 9; i++) { /* quotients of 0 */
        e[i] = 1;
        sum[i] = 0;
    }
    size_t rest = n;
    for (; rest % 4; rest--) sum[rest - 1] = behind = behind + e[rest - 1];
    for (; rest > 0; rest -= 4) { /* one addition of the chain for four elements */
        const double *x = e + rest - 4;
        const double two = x[3] + x[2];
        if (rest % CSM_POLL_STEP == 0 && csm_poll_stops(poll, CSM_POLL_STEP)) return 0;
        sum[rest - 1] = behind + x[3];
        sum[rest - 2] = behind + two;
        sum[rest - 3] = behind + (two + x[1]);
        sum[rest - 4] = behind = behind + (two + (x[1] + x[0]));
    }
    UNROLL
    for (int v = 0; v < VECTORS; v++) q[v] = v64_zero();
    for (size_t i = 0; i < n; i += 8) {
        unsigned large = 0;
        if (i % CSM_POLL_STEP == 0 && i > 0 && csm_poll_stops(poll, CSM_POLL_STEP)) return 0;
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            const size_t at = i + (size_t)v * v64_W;
            const v64_t next = v64_load_f64(sum + at + 1), weight = v64_load_f64(e + at);
            const v64_t rho = v64_div(next, weight), by = v64_div(v64_set(1), v64_load_f64(sum + at));
            v64_store_f64(inverse + at, by);
            v64_store_f64(grad + at, v64_mul(next, by));
            q[v] = v64_add(v64_add(q[v], rho), v64_mul(q[v], rho));
            large |= v64_bits(v64_not_le(q[v], v64_set(0x1p100)));
        }
        if (!large) continue;
        for (int v = 0; v < VECTORS; v++) v64_store_f64(lane + v * v64_W, q[v]);
        for (int l = 0; l < 8; l++) lane[l] = ranking_times(lane[l], 0, &log);
        for (int v = 0; v < VECTORS; v++) q[v] = v64_load_f64(lane + v * v64_W);
    }
    for (int v = 0; v < VECTORS; v++) v64_store_f64(lane + v * v64_W, q[v]);
    for (int half = 4; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = ranking_times(lane[l], lane[l + half], &log);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const double *by = inverse + i, two = by[0] + by[1];
        if (i % CSM_POLL_STEP == 0 && i > 0 && csm_poll_stops(poll, CSM_POLL_STEP)) return 0;
        grad[i] = e[i] * before - grad[i];
        grad[i + 1] = e[i + 1] * (before + by[0]) - grad[i + 1];
        grad[i + 2] = e[i + 2] * (before + two) - grad[i + 2];
        grad[i + 3] = e[i + 3] * (before + (two + by[2])) - grad[i + 3];
        before = before + (two + (by[2] + by[3]));
    }
    for (; i < n; i++) {
        grad[i] = e[i] * before - grad[i];
        before += inverse[i];
    }
    *loss = log + csm_log1p(lane[0], 0);
    return 1;
}

/* Lists side by side: lane l of row i is element i of list l, and rows behind its end are -inf, whose e are 0. */

enum { RANKING_VECTORS = CSM_RANKING_LANES / v64_W };
#define EACH(v) \
    UNROLL      \
    for (int v = 0; v < RANKING_VECTORS; v++)
#define AT(array, i, v) ((array) + (i) * CSM_RANKING_LANES + (v) * v64_W)

/* x becomes x / T; where T is no power of two (x - max) / T, whose part below its last bit goes to inverse, and max
 * becomes 0, or NaN if it is infinite.  The rounding of x / T would cost e^x a unit for each power of e. */
static void ranking_divide(csm_ranking_lanes *lanes, v64_t *max) {
    double rounds[CSM_RANKING_LANES];
    v64_t t[RANKING_VECTORS], reference[RANKING_VECTORS];
    for (int l = 0; l < CSM_RANKING_LANES; l++) rounds[l] = !ranking_is_power(lanes->temperature[l]);
    EACH(v) t[v] = v64_load_f64(AT(lanes->temperature, 0, v));
    EACH(v) reference[v] = v64_keep(v64_eq(v64_load_f64(AT(rounds, 0, v)), v64_set(1)), max[v]);
    EACH(v) max[v] = v64_div(v64_sub(max[v], reference[v]), t[v]);
    for (size_t i = 0; i < lanes->rows; i++) EACH(v) {
            const v64_t x = v64_load_f64(AT(lanes->e, i, v)), d = v64_sub(x, reference[v]), back = v64_sub(d, x);
            const v64_t rest = v64_sub(v64_sub(x, v64_sub(d, back)), v64_add(reference[v], back));
            const v64_t z = v64_div(d, t[v]), low = v64_div(v64_add(v64_fnma(z, t[v], d), rest), t[v]);
            v64_store_f64(AT(lanes->e, i, v), z);
            v64_store_f64(AT(lanes->inverse, i, v), v64_keep(v64_not_le(z, v64_set(-CSM_INF)), low));
        }
}

/* e = e^(x / T) 2^-n, n of the maximum, which goes to max. */
static void ranking_exponentials(csm_ranking_lanes *lanes, v64_t *max) {
    v64_shift shift[RANKING_VECTORS];
    int divides = 0;
    for (int l = 0; l < CSM_RANKING_LANES; l++) divides |= lanes->temperature[l] != 1;
    EACH(v) max[v] = v64_set(-CSM_INF);
    for (size_t i = 0; i < lanes->rows; i++) EACH(v) max[v] = v64_max(v64_load_f64(AT(lanes->e, i, v)), max[v]);
    if (divides) ranking_divide(lanes, max);
    EACH(v) {
        const v64_t magic = v64_set(EXP_MAGIC), n = v64_sub(v64_fma(max[v], v64_set(EXP_LOG2E), magic), magic);
        const csm_temperature none = {.inv_t = 1};
        shift[v] = v64_shift_by(v64_sub(v64_set(EXP_EXPONENT_BIAS), n), &none, 0);
    }
    for (size_t i = 0; i < lanes->rows; i++)
        EACH(v) v64_store_f64(AT(lanes->e, i, v), v64_exp_value(v64_load_f64(AT(lanes->e, i, v)), shift[v], 0));
    for (size_t i = 0; i < lanes->rows && divides; i++) EACH(v) {
            const v64_t e = v64_load_f64(AT(lanes->e, i, v));
            v64_store_f64(AT(lanes->e, i, v), v64_fma(e, v64_load_f64(AT(lanes->inverse, i, v)), e));
        }
}

/* Moves the power of two out of each lane of q above 2^100 into power, so that no product overflows. */
static void ranking_take_powers(v64_t *q, double *power) {
    double lane[CSM_RANKING_LANES];
    EACH(v) v64_store_f64(AT(lane, 0, v), q[v]);
    for (int l = 0; l < CSM_RANKING_LANES; l++) {
        if (!(lane[l] > 0x1p100)) continue;
        power[l] += csm_take_exponent(&lane[l]);
        lane[l] -= 1;
    }
    EACH(v) q[v] = v64_load_f64(AT(lane, 0, v));
}

/* Sums, quotients and the product, from the last element to the first; count: elements of at least RANKING_LEAST.
 * has_flags: before holds the sums of groups, and receives the number of elements that count from i to the group's end.
 */
INLINE void ranking_backward(csm_ranking_lanes *lanes, v64_t *q, v64_t *count, double *power, const int has_flags) {
    const v64_t one = v64_set(1), least = v64_set(RANKING_LEAST);
    v64_t sum[RANKING_VECTORS], tied[RANKING_VECTORS], in_group[RANKING_VECTORS];
    EACH(v) sum[v] = tied[v] = in_group[v] = count[v] = q[v] = v64_zero();
    for (size_t i = lanes->rows; i-- > 0;) {
        unsigned large = 0;
        EACH(v) {
            const v64_t e = v64_load_f64(AT(lanes->e, i, v));
            v64_t others = sum[v], rho;
            count[v] = v64_add(count[v], v64_keep(v64_ge(e, least), one));
            sum[v] = v64_add(sum[v], e);
            if (has_flags) {
                const v64_t counts = v64_load_f64(AT(lanes->counts, i, v));
                others = v64_mul(v64_add(v64_load_f64(AT(lanes->before, i, v)), others), counts);
                in_group[v] = v64_fma(in_group[v], tied[v], counts);
                tied[v] = v64_load_f64(AT(lanes->tied, i, v));
                v64_store_f64(AT(lanes->before, i, v), in_group[v]);
            }
            rho = v64_div(others, v64_max(e, least));
            v64_store_f64(AT(lanes->inverse, i, v), v64_div(one, v64_max(sum[v], least)));
            v64_store_f64(AT(lanes->grad, i, v), others);
            q[v] = v64_fma(q[v], rho, v64_add(q[v], rho));
            large |= v64_bits(v64_not_le(q[v], v64_set(0x1p100)));
        }
        if (large) ranking_take_powers(q, power);
    }
}

/* The gradient, from the first element to the last. */
INLINE void ranking_forward(csm_ranking_lanes *lanes, const int has_flags) {
    const v64_t one = v64_set(1);
    v64_t sum[RANKING_VECTORS], weight[RANKING_VECTORS], inverse[RANKING_VECTORS], in_group[RANKING_VECTORS];
    EACH(v) sum[v] = weight[v] = inverse[v] = in_group[v] = v64_zero();
    for (size_t i = 0; i < lanes->rows; i++) EACH(v) {
            const v64_t e = v64_load_f64(AT(lanes->e, i, v)), others = v64_load_f64(AT(lanes->grad, i, v));
            v64_t factor;
            if (has_flags) {
                const v64_mask begins = v64_not_le(one, v64_load_f64(AT(lanes->tied, i, v)));
                sum[v] = v64_add(sum[v], v64_keep(begins, weight[v]));
                inverse[v] = v64_select(begins, v64_load_f64(AT(lanes->inverse, i, v)), inverse[v]);
                in_group[v] = v64_select(begins, v64_load_f64(AT(lanes->before, i, v)), in_group[v]);
                weight[v] = v64_mul(in_group[v], inverse[v]);
                factor = v64_sub(in_group[v], v64_load_f64(AT(lanes->counts, i, v)));
                factor = v64_add(sum[v], v64_mul(factor, inverse[v]));
            } else {
                factor = sum[v];
                inverse[v] = v64_load_f64(AT(lanes->inverse, i, v));
                sum[v] = v64_add(sum[v], inverse[v]);
            }
            factor = v64_sub(v64_mul(e, factor), v64_mul(others, inverse[v]));
            v64_store_f64(AT(lanes->grad, i, v), v64_mul(factor, v64_load_f64(AT(lanes->factor, 0, v))));
        }
}

/* Sums of the elements before each in its group. */
static void ranking_before(csm_ranking_lanes *lanes) {
    v64_t before[RANKING_VECTORS];
    EACH(v) before[v] = v64_zero();
    for (size_t i = 0; i < lanes->rows; i++) EACH(v) {
            before[v] = v64_mul(before[v], v64_load_f64(AT(lanes->tied, i, v)));
            v64_store_f64(AT(lanes->before, i, v), before[v]);
            before[v] = v64_add(before[v], v64_load_f64(AT(lanes->e, i, v)));
        }
}

static void ranking_side_by_side(csm_ranking_lanes *lanes) {
    v64_t max[RANKING_VECTORS], count[RANKING_VECTORS], q[RANKING_VECTORS];
    double power[CSM_RANKING_LANES] = {0}, lane[CSM_RANKING_LANES];
    ranking_exponentials(lanes, max);
    if (lanes->has_flags) {
        ranking_before(lanes);
        ranking_backward(lanes, q, count, power, 1);
    } else {
        ranking_backward(lanes, q, count, power, 0);
    }
    EACH(v) v64_store_f64(AT(lane, 0, v), q[v]);
    SIMD
    for (int l = 0; l < CSM_RANKING_LANES; l++)
        lanes->loss[l] = power[l] * 0x1.62e42feep-1 + (power[l] * 0x1.a39ef35793c76p-33 + csm_log1p(lane[l], 0));
    EACH(v) {
        const v64_t largest = v64_set(RANKING_LARGEST), bad = v64_set(CSM_NAN);
        v64_t loss = v64_load_f64(AT(lanes->loss, 0, v));
        loss = v64_select(v64_eq(count[v], v64_load_f64(AT(lanes->count, 0, v))), loss, bad);
        loss = v64_select(v64_ge(largest, max[v]), loss, bad);
        v64_store_f64(AT(lanes->loss, 0, v), v64_select(v64_ge(max[v], v64_set(-RANKING_LARGEST)), loss, bad));
    }
    if (lanes->has_grad && lanes->has_flags) ranking_forward(lanes, 1);
    else if (lanes->has_grad) ranking_forward(lanes, 0);
}
#undef EACH
#undef AT
