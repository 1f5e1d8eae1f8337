/* Drawing: filters by passes over the row, whatever their order and however many classes they keep.
 *
 *   top_k        the k largest logits that are left
 *   top_p        the fewest of the most probable classes whose mass is at least top_p
 *   typical_p    the same of the classes whose -log p is nearest to the entropy: |x - sum p x| rises
 *   min_p        classes with at least min_p times the largest probability
 *   top_n_sigma  logits of at least max - n sigma, sigma the standard deviation of the finite logits that are left
 *
 * The classes that are left are always those on one side of a logit, or of a distance, and among equals those up to an
 * index (csm_sample_set), so that nothing is sorted or copied (sample_search.c).
 *
 * Passes: one for the masses, which are kept for all filters of a temperature; then one for top_k and top_p, two for
 * typical_p and top_n_sigma, one for min_p; where the mass, or the maximum, of what is left is not known, one more.
 * Rows with NaN or +inf have no mass: the first pass finds them, so that all others see ordered numbers only.
 */
#include "sample.h"

#include "../kernel/softmax/combine.h"

static const csm_sample_kernels *table_of(const csm_sample_row *row) {
    return &row->call->base.table->sample[row->call->base.dtype];
}
static size_t length_of(const csm_sample_row *row, size_t b) { return csm_block_length(row->count, b * CSM_BLOCK); }

/* Keeps logits of at least `low`. */
static void keep_from(csm_sample_row *row, double low) {
    csm_sample_set *set = &row->set;
    if (csm_is_single(&row->call->base) && low > -CSM_INF) low = csm_sample_least(row, low);
    if (!(low > set->large.wide_low)) return;
    set->is_active = 1;
    set->large = (csm_sample_range){low, CSM_INF, low, CSM_INF, INT64_MAX};
}

/* The smallest and the largest logit that is left, or the smallest with a mass of at least the row's limit. */
static csm_status ends(csm_sample_row *row, csm_body body, double *to) {
    csm_status status = csm_sample_blocks(row, body);
    to[0] = CSM_INF;
    to[1] = -CSM_INF;
    for (size_t b = 0; b < csm_block_count(row->count) && status == CSM_OK; b++) {
        to[0] = row->blocks[b].far < to[0] ? row->blocks[b].far : to[0];
        to[1] = row->blocks[b].mass > to[1] ? row->blocks[b].mass : to[1];
    }
    return status;
}
static csm_status ends_of_blocks(csm_sample_row *row, size_t begin, size_t end, int thread, int masses) {
    for (size_t b = begin; b < end; b++) {
        csm_sample_look look;
        double found[2];
        csm_status status = csm_sample_look_at(row, b, thread, masses, &look);
        if (status != CSM_OK) return status;
        table_of(row)->ends(look.x, look.mass, length_of(row, b), look.interval, csm_sample_least(row, row->limit),
                            found);
        row->blocks[b].far = found[0];
        row->blocks[b].mass = found[1];
    }
    return CSM_OK;
}
static csm_status ends_body(void *context, size_t begin, size_t end, int thread) {
    return ends_of_blocks(context, begin, end, thread, 0);
}
static csm_status heavy_ends_body(void *context, size_t begin, size_t end, int thread) {
    return ends_of_blocks(context, begin, end, thread, 1);
}
csm_status csm_sample_apply_min_p(csm_sample_row *row) {
    double found[2];
    row->limit = row->min_p * row->max_mass;
    row->min_p = 0;
    csm_status status = ends(row, heavy_ends_body, found);
    if (status == CSM_OK) keep_from(row, found[0]);
    return status;
}
/* Finds the largest logit that is left after typical_p; masses keep their scale and their transformation. */
static csm_status find_max(csm_sample_row *row) {
    double found[2];
    csm_status status = ends(row, ends_body, found);
    row->highest = found[1];
    row->max_mass = csm_sample_mass_of(row, found[1]);
    return status;
}

/* A pass of typical_p or top_n_sigma over logits of at least `low`; `numbers` are those of the kernels. */
typedef struct spreading {
    csm_sample_row *row;
    double low, numbers[3];
    int power; /* 0: weighed, for typical_p */
} spreading;
static csm_status spread_body(void *context, size_t begin, size_t end, int thread) {
    const spreading *s = context;
    const csm_sample_row *row = s->row;
    for (size_t b = begin; b < end; b++) {
        csm_sample_look look;
        csm_status status = csm_sample_look_at(row, b, thread, s->power == 0, &look);
        if (status != CSM_OK) return status;
        look.interval[0] = s->low > look.interval[0] ? s->low : look.interval[0];
        const size_t k = length_of(row, b);
        double *rest = &row->blocks[b].mass;
        row->blocks[b].far = s->power == 0
                                 ? table_of(row)->moment(look.x, look.mass, k, look.interval, s->numbers, rest)
                                 : table_of(row)->spread(look.x, k, look.interval, s->numbers, s->power, rest);
    }
    return CSM_OK;
}
/* The sums of what a pass has left in `far`, NaN if one of them is beyond the numbers, and in `mass`. */
static void add_blocks(const csm_sample_row *row, double *far, double *mass) {
    csm_exact sum[2];
    double rest, zero = 0;
    csm_exact_zero(&sum[0]);
    csm_exact_zero(&sum[1]);
    for (size_t b = 0; b < csm_block_count(row->count); b++) {
        csm_exact_add(&sum[0], row->blocks[b].far, 0, 1);
        csm_exact_add(&sum[1], row->blocks[b].mass, 0, 1);
        zero += row->blocks[b].far * 0;
    }
    csm_exact_pair(&sum[0], 0, far, &rest);
    csm_exact_pair(&sum[1], 0, mass, &rest);
    *far += zero;
}
static csm_status spread(spreading *s, double *sum, double *count) {
    csm_sample_call *call = s->row->call;
    const size_t blocks = csm_block_count(s->row->count);
    csm_status status = call->is_split ? csm_parallel(blocks, CSM_SAMPLE_PIECE, call->base.threads, spread_body, s,
                                                      &call->base.interrupt)
                                       : spread_body(s, 0, blocks, s->row->thread);
    if (status == CSM_OK) add_blocks(s->row, sum, count);
    return status;
}
static csm_status know_total(csm_sample_row *row, double *total) {
    return *total < 0 ? csm_sample_total(row, total) : CSM_OK;
}
/* *total: the mass of the set, or -1 if it is not known; then that of what is kept.
 *
 * Distances of doubles of 2^400 and more, or their products with masses, may be beyond the numbers.  Then classes
 * without mass are left out of the mean, the others are scaled for it, and distances are halved, which are numbers for
 * any two logits. */
static csm_status keep_typical(csm_sample_row *row, double *total) {
    csm_sample_set *set = &row->set;
    double moment, mass, found[2], unused;
    spreading s = {.row = row, .low = -CSM_INF, .numbers = {row->max, 1, 0}, .power = 0};
    csm_status status = spread(&s, &moment, &mass);
    set->unit = 1;
    if (status == CSM_OK && moment != moment) {
        row->limit = 0x1p-1022;
        status = ends(row, heavy_ends_body, found);
        s.low = found[0];
        if (row->max - s.low > 0x1p400) s.numbers[1] = 0x1p-600;
        s.numbers[0] *= s.numbers[1];
        if (status == CSM_OK) status = spread(&s, &moment, &mass);
        set->unit = 0.5;
    }
    if (status != CSM_OK) return status;
    if (*total < 0 && csm_is_single(&row->call->base)) *total = mass;
    status = know_total(row, total);
    if (status != CSM_OK) return status;
    mass = *total;
    set->center = row->max * set->unit + moment / mass * set->unit / s.numbers[1];
    return csm_sample_narrow(row, CSM_SAMPLE_NEAR, row->typical_p * mass, mass, total, &unused);
}
static csm_status keep_probable(csm_sample_row *row, double *total) {
    double unused;
    csm_status status = know_total(row, total);
    if (status != CSM_OK) return status;
    return csm_sample_narrow(row, CSM_SAMPLE_MASS_OF, row->top_p * *total, *total, total, &unused);
}

/* The scale of distances from the maximum, so that the squares of the largest ones are normal numbers; 0: all are 0.
 * Those of floats are so anyway. */
static csm_status scale_of(csm_sample_row *row, double *scale) {
    double found[2];
    *scale = 1;
    if (csm_is_single(&row->call->base)) return CSM_OK;
    csm_status status = ends(row, ends_body, found);
    const double range = row->highest - found[0]; /* may be infinite */
    if (range > 0x1p500) *scale = 0x1p-600;
    if (range < 0x1p-500) *scale = range > 0 ? 0x1p574 : 0;
    return status;
}
/* The least logit that is kept, max - n sigma, given sigma times the scale. */
static double end_of_sigmas(const csm_sample_row *row, double scaled, double scale) {
    const double n = row->top_n_sigma, max = row->highest;
    double drop = n * scaled, low = (max * scale - drop) / scale;
    if (scale < 1) { /* half of n sigma may be a number where n sigma is not */
        const double half = n * (scaled * 0.5 / scale);
        drop = half * 2;
        low = max - drop;
        if (low == -CSM_INF) return (max * 0.5 - half) * 2;
        scale = 1;
    }
    const int is_far = (max - low) * scale > drop && !csm_is_single(&row->call->base); /* rounded down */
    return is_far ? csm_sample_next(row, low) : low;
}
static csm_status keep_sigmas(csm_sample_row *row) {
    double sum, count, scale;
    csm_status status = scale_of(row, &scale);
    if (status != CSM_OK || scale == 0) return status;
    spreading s = {.row = row, .low = -CSM_INF, .numbers = {row->highest * scale, scale, 0}, .power = 1};
    status = spread(&s, &sum, &count);
    if (status != CSM_OK) return status;
    s.numbers[2] = sum / count;
    s.power = 2;
    status = spread(&s, &sum, &count);
    if (status == CSM_OK) keep_from(row, end_of_sigmas(row, sqrt(sum / count), scale));
    return status;
}

csm_status csm_sample_filter(csm_sample_row *row) {
    csm_sample_call *call = row->call;
    const csm_scales *tempered = row->scales;
    double total, unused[2];
    int is_weighed = 1, has_max = 1;
    if (call->order_count > 0 && call->order[0] != CSM_FILTER_TEMPERATURE) row->scales = &call->unit;
    if (row->temperature == 0) row->scales = &call->unit; /* the largest logit is chosen where T comes */
    csm_status status = csm_sample_weigh(row, &total); /* finds rows without mass */
    const double min_p = row->min_p;
    row->min_p = 0;
    for (size_t i = 0; i < call->order_count && status == CSM_OK; i++) {
        const csm_filter filter = call->order[i];
        const int by_mass = (filter == CSM_FILTER_TYPICAL_P && row->typical_p < 1) ||
                            (filter == CSM_FILTER_TOP_P && row->top_p < 1) || (filter == CSM_FILTER_MIN_P && min_p > 0);
        const int by_logit = (filter == CSM_FILTER_TOP_N_SIGMA && row->top_n_sigma < CSM_INF) ||
                             (filter == CSM_FILTER_TOP_K && row->top_k < row->count);
        if (filter == CSM_FILTER_TEMPERATURE) {
            if (row->temperature == 0) return csm_sample_narrow(row, CSM_SAMPLE_COUNT, 1, total, unused, unused + 1);
            is_weighed = is_weighed && row->scales == tempered;
            row->scales = tempered;
            continue;
        }
        if (!by_mass && !by_logit) continue;
        if (!is_weighed && (by_mass || !has_max)) {
            status = csm_sample_weigh(row, &total);
            is_weighed = has_max = 1;
        } else if (!has_max && filter != CSM_FILTER_TOP_P && filter != CSM_FILTER_TOP_K) {
            status = find_max(row);
            has_max = 1;
        }
        if (status != CSM_OK) return status;
        switch (filter) {
        case CSM_FILTER_TOP_N_SIGMA: status = keep_sigmas(row); break;
        case CSM_FILTER_TOP_K:
            status = csm_sample_narrow(row, CSM_SAMPLE_COUNT, (double)row->top_k, total, unused, unused + 1);
            break;
        case CSM_FILTER_TYPICAL_P:
            status = keep_typical(row, &total);
            has_max = 0;
            break;
        case CSM_FILTER_TOP_P: status = keep_probable(row, &total); break;
        default: row->min_p = min_p; status = csm_sample_apply_min_p(row);
        }
        if (filter != CSM_FILTER_TYPICAL_P && filter != CSM_FILTER_TOP_P) total = -1;
    }
    return status;
}
