/* Scores of labels from sparse features, and the gradient of their weights.
 *
 *     emissions[t, j] = sum of value(t, a) w(a, j) over the attributes a of token t
 *     gradient(a, j)  = sum of value(t, a) grad[t, j] over the tokens t that have a
 *
 * Weights exist for some pairs (a, j) only (job.h).  An attribute with many labels is added as a row, in vectors, any
 * other label by label.  Both passes read each entry once; the gradient reads the rows of grad in the order of the
 * tokens, once for every four labels of an attribute without a row.
 *
 * Accumulators are double, one for each (t, j) or (a, j), with one addition (an fma where values are given) for each
 * entry.  The order of a token's sum: chunks of CSM_FEATURE_CHUNK entries; in each the attributes with rows, then the
 * others, in the order of the entries.  That of a pair's sum: its tokens, rising.  One thread owns each sum, so that
 * bits depend neither on threads nor on the instruction set.  NaN and infinity propagate as in any sum; the columns
 * beyond L of a row are 0 or undefined, and never reach a result.
 *
 * Error: that of a recursive sum, at most n 2^-53 of the sum of the magnitudes for n entries; measured 3.9 2^-53 for 11
 * entries and 3.3 2^-53 for 500.
 */

/* Adds rows of weights to `vectors` vectors of a token's scores. */
INLINE void add_feature_rows(double *to, const double *rows, size_t stride, const int32_t *row, const float *value,
                             size_t count, const int vectors) {
    v64_t sum[8];
    UNROLL
    for (int i = 0; i < vectors; i++) sum[i] = v64_load_f64(to + i * v64_W);
    if (value) {
        for (size_t k = 0; k < count; k++) {
            const double *from = rows + (size_t)row[k] * stride;
            const v64_t v = v64_set((double)value[k]);
            UNROLL
            for (int i = 0; i < vectors; i++) sum[i] = v64_fma(v64_load_f64(from + i * v64_W), v, sum[i]);
        }
    } else {
        for (size_t k = 0; k < count; k++) {
            const double *from = rows + (size_t)row[k] * stride;
            UNROLL
            for (int i = 0; i < vectors; i++) sum[i] = v64_add(sum[i], v64_load_f64(from + i * v64_W));
        }
    }
    UNROLL
    for (int i = 0; i < vectors; i++) v64_store_f64(to + i * v64_W, sum[i]);
}

/* The same for whole rows: as many columns at once as registers hold. */
static void add_all_feature_rows(double *to, size_t width, const double *rows, size_t stride, const int32_t *row,
                                 const float *value, size_t count) {
    size_t j = 0;
    for (; width - j >= 8 * v64_W; j += 8 * v64_W) add_feature_rows(to + j, rows + j, stride, row, value, count, 8);
    for (; width - j >= 4 * v64_W; j += 4 * v64_W) add_feature_rows(to + j, rows + j, stride, row, value, count, 4);
    for (; j < width; j += v64_W) add_feature_rows(to + j, rows + j, stride, row, value, count, 1);
}

static int feature_emissions(const csm_pairs *p, const csm_entries *e, size_t first, size_t last, double *emissions,
                             double *scratch, const csm_poll *poll) {
    int32_t rows[CSM_FEATURE_CHUNK + 1], rest[CSM_FEATURE_CHUNK + 1];
    float row_values[CSM_FEATURE_CHUNK + 1], rest_values[CSM_FEATURE_CHUNK + 1];
    size_t work = 0;
    for (size_t t = first; t < last; t++) {
        for (size_t j = 0; j < p->width; j++) scratch[j] = 0;
        for (int64_t begin = e->begin[t], end; begin < e->begin[t + 1]; begin = end) {
            end = e->begin[t + 1] - begin < CSM_FEATURE_CHUNK ? e->begin[t + 1] : begin + CSM_FEATURE_CHUNK;
            size_t row_count = 0, rest_count = 0;
            /* both lists are written and one of them grows: a branch would be mispredicted */
            for (int64_t i = begin; i < end; i++) {
                const int32_t attribute = e->index[i], row = p->row[attribute];
                PREFETCH(p->weight + p->offsets[attribute]); /* of a rare attribute they are not in cache */
                PREFETCH(p->label + p->offsets[attribute]);
                rows[row_count] = row;
                rest[rest_count] = attribute;
                if (e->value) row_values[row_count] = rest_values[rest_count] = e->value[i];
                row_count += row >= 0;
                rest_count += row < 0;
            }
            add_all_feature_rows(scratch, p->width, p->rows, p->width, rows, e->value ? row_values : NULL, row_count);
            for (size_t k = 0; k < rest_count; k++) {
                const int64_t to = p->offsets[rest[k] + 1];
                if (e->value)
                    for (int64_t i = p->offsets[rest[k]]; i < to; i++)
                        scratch[p->label[i]] = fma(p->weight[i], (double)rest_values[k], scratch[p->label[i]]);
                else
                    for (int64_t i = p->offsets[rest[k]]; i < to; i++) scratch[p->label[i]] += p->weight[i];
                work += (size_t)(to - p->offsets[rest[k]]);
            }
            work += row_count * p->width;
        }
        for (size_t j = 0; j < p->labels; j++)
            emissions[t * p->labels + j] = scratch[j]; /* units call nothing of libc */
        work += p->width;
        if (work >= CSM_POLL_STEP) {
            if (csm_poll_stops(poll, work)) return 1;
            work = 0;
        }
    }
    return 0;
}

/* Sums over the tokens of one attribute, `count` of its labels side by side. */
INLINE void sum_feature_labels(const csm_entries *e, int64_t begin, int64_t end, const double *grad, size_t labels,
                               const uint16_t *label, double *to, const int count) {
    double sum[4] = {0, 0, 0, 0};
    if (e->value)
        for (int64_t i = begin; i < end; i++) {
            const double *from = grad + (size_t)e->index[i] * labels, value = (double)e->value[i];
            UNROLL
            for (int k = 0; k < count; k++) sum[k] = fma(from[label[k]], value, sum[k]);
        }
    else
        for (int64_t i = begin; i < end; i++) {
            const double *from = grad + (size_t)e->index[i] * labels;
            UNROLL
            for (int k = 0; k < count; k++) sum[k] += from[label[k]];
        }
    UNROLL
    for (int k = 0; k < count; k++) to[k] = sum[k];
}

static int feature_gradient(const csm_pairs *p, const csm_entries *e, size_t first, size_t last, const double *grad,
                            double *scratch, const csm_poll *poll) {
    size_t work = 0;
    for (size_t a = first; a < last; a++) {
        int64_t begin = e->begin[a], to = p->offsets[a];
        const int64_t end = e->begin[a + 1], stop = p->offsets[a + 1];
        if (p->row[a] >= 0) {
            for (size_t j = 0; j < p->width; j++) scratch[j] = 0;
            while (begin < end) {
                const int64_t step = end - begin < CSM_POLL_STEP / 8 ? end - begin : CSM_POLL_STEP / 8;
                add_all_feature_rows(scratch, p->width, grad, p->labels, e->index + begin,
                                     e->value ? e->value + begin : NULL, (size_t)step);
                begin += step;
                if (csm_poll_stops(poll, (size_t)step * p->width)) return 1;
            }
            for (; to < stop; to++) p->weight[to] = scratch[p->label[to]];
            continue;
        }
        for (; stop - to >= 4; to += 4)
            sum_feature_labels(e, begin, end, grad, p->labels, p->label + to, p->weight + to, 4);
        if (stop - to >= 2) {
            sum_feature_labels(e, begin, end, grad, p->labels, p->label + to, p->weight + to, 2);
            to += 2;
        }
        if (stop > to) sum_feature_labels(e, begin, end, grad, p->labels, p->label + to, p->weight + to, 1);
        work += (size_t)((end - begin) * (stop - p->offsets[a])) + 1;
        if (work >= CSM_POLL_STEP) {
            if (csm_poll_stops(poll, work)) return 1;
            work = 0;
        }
    }
    return 0;
}
