/* Rows of cross-entropy, contiguous along the axis: by the kernels of many rows where those can, else block by block.
 * Rows outside the range of exp's reduction are transformed block by block, twice (softmax_row.c); rows in which
 * probabilities underflow whose gradients would not are computed by underflow.h.  Of a shard of the classes, stages
 * (shard.h) leave the sums in a record, and take them from a merged one.
 */
#include "cross_entropy.h"

void csm_find_lost_limit(csm_loss_run *call) {
    const csm_loss_call *c = &call->loss_call;
    const csm_loss_options *o = call->options;
    const int single = csm_is_single(&call->base);
    const double of_max = call->base.scales.always_transform ? CSM_INF : (single ? 1e6 : 0x1p45) + 64;
    if (c->n == 0) return;
    call->lost_extra = c->smoothing / (double)c->n * c->weight_sum + (c->z_loss != 0 ? 2 * c->z_loss * of_max : 0);
    call->lost_limit = csm_times_pow2(single ? 0x1p20 : 0x1p210, -c->t_exponent - c->divisor_exponent);
    call->lost_upstream = c->clip_value < CSM_INF ? csm_times_pow2(4, -c->divisor_exponent) : CSM_INF;
    const double limit = call->capped ? csm_times_pow2(1, -c->t_exponent - c->divisor_exponent) : call->lost_limit;
    call->has_lost = c->gradient && (call->is_soft || o->weight || o->sample_weight || o->upstream ||
                                     1 + call->lost_extra > limit || 1 > call->lost_upstream);
}

int csm_loss_read_input(const csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, csm_loss_input *in) {
    *in = (csm_loss_input){.w_label = 1, .upstream = 1, .e_label = -1};
    if (!csm_read_label_and_weight(job, at, in)) return 0;
    if (job->upstream) memcpy(&in->upstream, job->upstream + at * job->upstream_step, sizeof in->upstream);
    if (in->label >= 0) in->mass = in->w_label = csm_class_weight(call, (size_t)in->label);
    else in->mass = job->mass[at * job->order];
    return 1;
}

static void fill_row(const csm_loss_run *call, char *gradient, double value, const csm_poll *poll) {
    const csm_call *c = &call->base;
    csm_wide element;
    if (!gradient) return;
    csm_put(c, &element, value);
    for (size_t j = 0; j < c->shape.n && !csm_poll_at(poll, j); j++)
        memcpy(gradient + j * c->itemsize, &element, c->itemsize);
}

/* The product of the factors of a row's gradients. */
static double factor_of(const csm_loss_run *call, const csm_loss_input *in) {
    return in->weight * fabs(in->upstream) * (in->mass + call->lost_extra);
}
/* Whether the factors of a row are so large that the kernels can lose a gradient. */
static int may_lose_gradient(const csm_loss_run *call, const csm_loss_input *in) {
    return factor_of(call, in) > call->lost_limit || fabs(in->upstream) > call->lost_upstream;
}
/* Whether one of these classes is lost, where that is so; the row's maximum is in the input. */
static int holds_lost_gradient(const csm_loss_run *call, const char *x, const csm_loss_input *in, char *wide) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, count = csm_block_count(n);
    const csm_loss_lost lost = csm_loss_lost_of(&call->loss_call, in, csm_is_single(c));
    for (size_t b = 0; b < count && lost.low <= lost.high; b++) {
        const size_t k = csm_block_length(n, b * CSM_BLOCK);
        c->table->widen[c->dtype](x + b * CSM_BLOCK * c->itemsize, wide, k);
        for (size_t j = 0; j < k; j++)
            if (csm_loss_is_lost(lost, csm_wide_at(c, wide, j))) return 1;
    }
    return 0;
}
/* Whether the kernels lose the gradient of one of a row's classes; sets the row's maximum in the input. */
static int has_lost_gradient(const csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, csm_loss_input *in,
                             char *wide) {
    const csm_call *c = &call->base;
    const char *x = job->x + at * job->x_step;
    const size_t n = c->shape.n;
    if (job->far && csm_loss_loses_slope(call, factor_of(call, in), job->far[at])) return 1;
    if (!may_lose_gradient(call, in)) return 0;
    in->max = -CSM_INF;
    for (size_t b = 0; b < csm_block_count(n); b++) {
        const double max = c->table->max[c->dtype](x + b * CSM_BLOCK * c->itemsize, csm_block_length(n, b * CSM_BLOCK));
        if (!(max <= in->max)) in->max = max;
    }
    return holds_lost_gradient(call, x, in, wide);
}

/* The state of a contiguous row of any length and content while it is computed. */
typedef struct row_state {
    const csm_loss_run *call;
    const csm_loss_call *loss_call; /* for ordinary or for transformed rows */
    const csm_loss_kernels *kernels; /* for ordinary or for transformed rows */
    const char *x, *q;
    char *gradient; /* may be x; NULL: none */
    const char *uncapped, *slope; /* if the logits of x are capped: the caller's, and the slopes of the cap, or NULL */
    char *wide, *scratch; /* for a block of the compute type; for e' of a block */
    csm_block *blocks;
    csm_loss_input in;
    csm_loss_row row;
    double max;
    int is_transformed, stores_e; /* stores_e: pass 1 stores e' in the gradient */
    csm_poll poll;
    int is_stopped; /* the call has been interrupted */
    int has_bad_label; /* of a shard: a soft label is bad */
} row_state;

/* Asks after block b of a long row. */
static int stops(row_state *s, size_t b) { return (s->is_stopped |= b > 0 && csm_poll_stops(&s->poll, CSM_BLOCK)); }

/* A block of such a row. */
typedef struct loss_block {
    size_t k;
    const char *x;
    char *e, *gradient; /* e: NULL if pass 1 does not store e' in the gradient */
    csm_loss_terms terms;
    int has_terms;
} loss_block;

static loss_block block_at(const row_state *s, size_t b) {
    const csm_call *c = &s->call->base;
    const csm_loss_call *call = s->loss_call;
    const size_t begin = b * CSM_BLOCK, wide_begin = begin * c->wide_size;
    loss_block p = {.k = csm_block_length(c->shape.n, begin), .x = s->x + begin * c->itemsize};
    p.gradient = s->gradient ? s->gradient + begin * c->itemsize : NULL;
    p.e = s->stores_e ? p.gradient : NULL;
    p.has_terms = call->soft || call->smoothing != 0;
    p.terms = (csm_loss_terms){s->q ? s->q + wide_begin : NULL, call->w ? (const char *)call->w + wide_begin : NULL,
                               1 - call->smoothing, call->smoothing / (double)call->n};
    if (s->is_transformed) {
        c->table->widen[c->dtype](p.x, s->wide, p.k);
        csm_transform(&c->scales, csm_is_single(c), s->wide, p.k, s->max);
        p.x = s->wide;
    }
    return p;
}

/* The weighted distances of a block of a transformed row. */
static double far_of_block(const row_state *s, size_t b, const loss_block *p) {
    const csm_call *c = &s->call->base;
    const char *q = p->terms.q, *w = p->terms.w;
    csm_pair lanes[CSM_FAR_LANES] = {{0, 0}}, sum = {0, 0};
    c->table->widen[c->dtype](s->x + b * CSM_BLOCK * c->itemsize, s->wide, p->k);
    for (size_t j = 0; j < p->k; j++)
        csm_far_add(&lanes[j % CSM_FAR_LANES], &p->terms, q ? csm_wide_at(c, q, j) : 0, w ? csm_wide_at(c, w, j) : 1,
                    s->max, csm_wide_at(c, s->wide, j), c->scales.temperature);
    for (int l = 0; l < CSM_FAR_LANES; l++) csm_far_join(&sum, lanes[l]);
    return csm_far_total(sum);
}

static void run_pass1(row_state *s, size_t b, const loss_block *p) {
    const int sums_terms = p->has_terms && !s->is_transformed;
    s->kernels->pass1(p->x, p->e, p->k, s->loss_call->t, sums_terms ? &p->terms : NULL, &s->blocks[b]);
    if (p->has_terms && s->is_transformed) s->blocks[b].far = far_of_block(s, b, p);
}

/* Makes a row one that is transformed. */
static void transform_row(row_state *s) {
    const csm_call *c = &s->call->base;
    s->is_transformed = 1;
    s->stores_e = 0;
    s->loss_call = &s->call->transformed_call;
    s->kernels = s->call->wide_kernels;
    if (s->in.label >= 0) {
        csm_wide w = csm_to_wide(c, s->in.x_label);
        csm_transform(&c->scales, csm_is_single(c), &w, 1, s->max);
        s->in.z_label = csm_from_wide(c, w);
    }
}

/* Computes the maxima, pass 1 of every block, and the row's sums and loss.  Returns 0 if the loss is NaN. */
static int sum_row(row_state *s) {
    const csm_loss_run *call = s->call;
    const csm_call *c = &call->base;
    const size_t count = csm_block_count(c->shape.n);
    csm_loss_input *in = &s->in;
    /* Pass 1 and the search for the maximum share one loop, unless pass 1 could overwrite a row that must be
     * transformed. */
    const int is_fused = !c->scales.always_transform && s->gradient != s->x;
    s->max = -CSM_INF;
    for (size_t b = 0; b < count; b++) {
        const loss_block p = block_at(s, b);
        s->blocks[b].max = c->table->max[c->dtype](p.x, p.k);
        if (s->blocks[b].max > s->max) s->max = s->blocks[b].max;
        if (is_fused) run_pass1(s, b, &p);
        if (stops(s, b)) return 0;
    }
    in->max = s->max;
    if (!csm_fits_range(&c->scales, s->max)) transform_row(s);
    if (!(s->max < CSM_INF && s->max > -CSM_INF)) return 0;
    for (size_t b = 0; b < count && (!is_fused || s->is_transformed); b++) {
        const loss_block p = block_at(s, b);
        if (s->is_transformed) s->blocks[b].max = c->table->max[c->wide_dtype](p.x, p.k);
        run_pass1(s, b, &p);
        if (stops(s, b)) return 0;
    }
    if (s->stores_e && in->label >= 0) {
        in->e_label = csm_element(c, s->gradient, (size_t)in->label);
        in->n = s->blocks[(size_t)in->label / CSM_BLOCK].n;
    }
    s->kernels->sums(s->loss_call, in, s->blocks, count, &s->row);
    return !s->row.is_nan;
}

/* The sum of the squares of the gradient of the row loss, without the label's.  label: its place in this array, or
 * negative. */
static csm_pair_sum sum_squares(row_state *s, ptrdiff_t label) {
    const size_t count = csm_block_count(s->call->base.shape.n);
    csm_pair_sum squares;
    s->kernels->factors(s->loss_call, &s->in, -1, &s->row);
    csm_pair_sum_zero(&squares);
    for (size_t b = 0; b < count; b++) {
        const loss_block p = block_at(s, b);
        ptrdiff_t place = label - (ptrdiff_t)(b * CSM_BLOCK);
        if (label < 0 || place < 0 || place >= (ptrdiff_t)p.k) place = -1;
        const double of_block = s->kernels->norm(p.x, p.e, p.k, s->loss_call->t, &s->blocks[b], &s->row,
                                                 p.has_terms ? &p.terms : NULL, place, s->scratch);
        csm_pair_sum_add(&squares, of_block, 0);
        if (stops(s, b)) break;
    }
    return squares;
}
/* The factor that clip_norm requires. */
static double clip_factor(row_state *s) {
    if (!(s->loss_call->clip_norm < CSM_INF)) return 1;
    const csm_pair_sum squares = sum_squares(s, s->in.label);
    return csm_loss_shrink(s->loss_call, &s->in, &s->row, csm_pair_sum_rounded(&squares));
}

/* label: its place in this array, or negative. */
static void write_gradient(row_state *s, ptrdiff_t label) {
    const csm_call *c = &s->call->base;
    const size_t count = csm_block_count(c->shape.n);
    for (size_t b = 0; b < count; b++) {
        const loss_block p = block_at(s, b);
        char *to = s->is_transformed ? s->wide : p.gradient;
        s->kernels->pass2(p.x, p.e, to, s->slope ? s->slope + b * CSM_BLOCK * c->wide_size : NULL, p.k, s->loss_call->t,
                          &s->blocks[b], &s->row, p.has_terms ? &p.terms : NULL, s->scratch);
        if (s->is_transformed) c->table->narrow[c->dtype](s->wide, p.gradient, p.k);
        if (stops(s, b)) return;
    }
    if (label < 0) return;
    double target = s->row.target;
    csm_put(c, s->gradient + (size_t)label * c->itemsize, target);
    if (!s->slope) return;
    target = csm_element(c, s->gradient, (size_t)label); /* rounded before the product, as in the kernels */
    csm_put(c, s->gradient + (size_t)label * c->itemsize, target * csm_wide_at(c, s->slope, (size_t)label));
}

/* The passes over a row with lost gradients: its sums, its norm, its gradient. */
enum { SUMS, NORM, GRADIENT };
static void pass_over_lost(row_state *s, csm_loss_exact *exact, csm_factor *square, int pass) {
    const csm_call *c = &s->call->base;
    const size_t n = c->shape.n;
    for (size_t b = 0; b < csm_block_count(n) && !s->is_stopped; b++) {
        const size_t begin = b * CSM_BLOCK, k = csm_block_length(n, begin);
        c->table->widen[c->dtype](s->x + begin * c->itemsize, s->wide, k);
        for (size_t j = 0; j < k; j++) {
            const double x = csm_wide_at(c, s->wide, j);
            const int is_label = (ptrdiff_t)(begin + j) == s->in.label;
            if (pass == SUMS) {
                csm_loss_exact_add(exact, x, is_label);
                continue;
            }
            const double q = s->q ? csm_wide_at(c, s->q, begin + j) : is_label;
            csm_factor g = csm_loss_exact_of_row(exact, x, q, csm_class_weight(s->call, begin + j), is_label);
            if (s->uncapped) g = csm_factor_mul(g, csm_loss_slope_at(s->call, s->uncapped, begin + j));
            if (pass == NORM) *square = csm_factor_add(*square, csm_factor_mul(g, g));
            else csm_put(c, s->gradient + (begin + j) * c->itemsize, csm_loss_exact_result(exact, g));
        }
        s->is_stopped |= csm_poll_stops(&s->poll, 16 * k); /* an element takes some 0.1 us */
    }
}
static void write_lost_gradient(row_state *s) {
    const csm_loss_options *o = s->call->options;
    csm_loss_call call = s->call->loss_call;
    call.clip_norm = o->clip_norm > 0 ? o->clip_norm : CSM_INF; /* of capped logits, the call has none */
    call.clip_value = o->clip_value > 0 ? o->clip_value : CSM_INF;
    csm_loss_exact exact = csm_loss_exact_begin(&call, s->max);
    csm_factor square = {{0, 0}, 0};
    pass_over_lost(s, &exact, &square, SUMS);
    csm_loss_exact_factors(&call, &s->in, &exact);
    if (call.clip_norm < CSM_INF) {
        pass_over_lost(s, &exact, &square, NORM);
        csm_loss_exact_shrink(&call, square, &exact);
    }
    pass_over_lost(s, &exact, &square, GRADIENT);
}

static row_state state_of(csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, int thread, char *memory) {
    return (row_state){.call = call,
                       .loss_call = &call->loss_call,
                       .kernels = call->kernels,
                       .x = job->x + at * job->x_step,
                       .q = job->q ? job->q + at * job->q_step : NULL,
                       .gradient = job->gradient ? job->gradient + at * job->gradient_step : NULL,
                       .wide = memory + call->e_size + call->block_size,
                       .scratch = memory,
                       .blocks = (csm_block *)(void *)(memory + call->e_size),
                       .poll = csm_poll_of(&call->base.interrupt, thread)};
}

/* Shards: the sums of the blocks go to a record, and a merged record takes their place. */

/* The place of the row's label in the shard, or -1. */
static ptrdiff_t place_of_label(const row_state *s) {
    const ptrdiff_t at = s->in.label - (ptrdiff_t)s->call->shard->options->offset;
    return s->in.label >= 0 && at >= 0 && at < (ptrdiff_t)s->call->base.shape.n ? at : -1;
}

/* Adds the weighted distances of a block as csm_loss_far does, but for what depends on the row's maximum. */
static void add_far(csm_loss_record *r, const csm_block *block, const csm_temperature *t) {
    const double other = block->far - block->far == 0 ? block->mass : block->far;
    if (other - other == 0) {
        csm_exact_add(&r->mass, block->mass, 0, 1);
        csm_exact_add(&r->far, block->far, 0, 1);
        csm_exact_add_product(&r->far, -csm_reference(block->max, t), block->mass);
    } else {
        r->base.flags |= other == other ? CSM_RECORD_INFINITE_TERMS : CSM_RECORD_NAN_TERMS;
    }
}
static double far_of_record(const csm_loss_record *r, double max) {
    csm_exact sum = r->far;
    double hi, lo;
    if (r->base.flags & CSM_RECORD_NAN_TERMS) return CSM_NAN;
    if (r->base.flags & CSM_RECORD_INFINITE_TERMS) return CSM_INF;
    csm_exact_pair(&r->mass, 0, &hi, &lo);
    csm_exact_add_product(&sum, max, hi);
    csm_exact_add_product(&sum, max, lo);
    csm_exact_pair(&sum, 0, &hi, &lo);
    return hi > 0 ? hi : 0;
}

/* Adds the masses of the soft labels; marks bad ones. */
static void add_masses(row_state *s, csm_loss_record *r) {
    const csm_call *c = &s->call->base;
    for (size_t b = 0; b < csm_block_count(c->shape.n); b++) {
        const loss_block p = block_at(s, b);
        double hi, lo;
        if (!s->call->kernels->mass(p.terms.q, p.terms.w, p.k, &hi, &lo)) s->has_bad_label = 1;
        if (hi - hi == 0 && lo - lo == 0) {
            csm_exact_add(&r->row_mass, hi, 0, 1);
            csm_exact_add(&r->row_mass, lo, 0, 1);
        } else {
            r->base.flags |= CSM_RECORD_POSITIVE;
        }
    }
}

/* Pass 1 of a block; also stores its e' if it holds the label, in scratch if there is no other place. */
static void sum_block(row_state *s, csm_loss_record *r, size_t b, ptrdiff_t label) {
    const csm_call *c = &s->call->base;
    const size_t begin = b * CSM_BLOCK;
    csm_block *block = &s->blocks[b];
    loss_block p = block_at(s, b);
    const int holds_label = label >= (ptrdiff_t)begin && label < (ptrdiff_t)(begin + p.k) && !s->is_transformed;
    block->max = c->table->max[s->is_transformed ? c->wide_dtype : c->dtype](p.x, p.k);
    if (holds_label && !p.e && c->itemsize == c->wide_size) p.e = s->scratch;
    if (s->is_transformed || !c->scales.always_transform) {
        run_pass1(s, b, &p);
        if (holds_label && p.e) {
            r->label.e = csm_wide_at(c, p.e, (size_t)label - begin);
            r->label.n = block->n;
        }
        if (!(block->hi - block->hi == 0)) r->base.flags |= CSM_RECORD_NAN;
        if (p.has_terms) add_far(r, block, s->loss_call->t);
    }
}

/* The sums of all blocks; the largest maximum alone of a row whose sums belong to the second round. */
static void add_blocks(const row_state *s, csm_loss_record *r, size_t count) {
    const int64_t flags = r->base.flags;
    if (s->is_transformed || !s->call->base.scales.always_transform) {
        r->base = csm_record_of_blocks(s->blocks, count, 1);
        r->base.flags = flags;
        return;
    }
    for (size_t b = 0; b < count; b++)
        if (s->blocks[b].max > r->base.max) r->base.max = s->blocks[b].max + 0;
}

static void sum_shard(row_state *s, const csm_loss_job *job, ptrdiff_t at, size_t index) {
    const csm_loss_run *call = s->call;
    const csm_call *c = &call->base;
    const size_t count = csm_block_count(c->shape.n);
    const double row_max = csm_shard_row_max(call->shard, index);
    csm_loss_record r;
    csm_loss_record_clear(&r);
    r.label.e = -1;
    const int is_kept = csm_read_label_and_weight(job, at, &s->in);
    const ptrdiff_t label = place_of_label(s);
    if (call->is_soft && (is_kept || call->is_direct)) add_masses(s, &r); /* rows that are left out are not packed */
    if (is_kept && row_max == row_max) {
        s->max = row_max;
        transform_row(s);
        r.base.flags |= CSM_RECORD_TRANSFORMED;
    }
    if (label >= 0) {
        r.label.owners = 1;
        if (is_kept) r.label.x = csm_element(c, s->x, (size_t)label); /* no other row is read */
        r.w_label = csm_class_weight(call, (size_t)label);
    }
    for (size_t b = 0; b < count && is_kept; b++) {
        sum_block(s, &r, b, label);
        call->shard->block_max[index * count + b] = s->blocks[b].max;
        r.base.flags |= CSM_RECORD_KEPT;
        if (stops(s, b)) return;
    }
    if (is_kept && count > 0) add_blocks(s, &r, count);
    csm_loss_record_store(&r, call->shard->records + index * call->shard->words, call->shard->words);
}

/* Sets the sums and the loss of a row from its merged record.  Returns whether the loss is a number. */
static int combine_record(row_state *s, const csm_loss_record *r, size_t index) {
    const csm_loss_run *call = s->call;
    const double row_max = csm_shard_row_max(call->shard, index);
    csm_block block = {.max = r->base.max};
    s->max = s->in.max = r->base.max;
    if (row_max == row_max) {
        s->max = s->in.max = row_max;
        transform_row(s);
    }
    if (!(s->max < CSM_INF && s->max > -CSM_INF)) return 0;
    const csm_wide max = csm_to_wide(&call->base, block.max);
    call->wide_kernels->pass1(&max, NULL, 1, s->loss_call->t, NULL, &block); /* n and power of the maximum */
    csm_exact_pair(&r->base.sum, (int64_t)block.n, &block.hi, &block.lo);
    if (r->base.flags & CSM_RECORD_NAN) block.hi = CSM_NAN;
    block.count = (double)r->base.count;
    block.far = far_of_record(r, block.max);
    s->kernels->sums(s->loss_call, &s->in, &block, 1, &s->row);
    return !s->row.is_nan;
}

/* Reads the inputs of a row, some of them from its merged record.  Returns whether the row takes part. */
static int read_shard_input(row_state *s, const csm_loss_job *job, ptrdiff_t at, const csm_loss_record *r) {
    double lo;
    s->in.upstream = 1;
    if (!csm_read_label_and_weight(job, at, &s->in)) return 0;
    if (job->upstream) memcpy(&s->in.upstream, job->upstream + at * job->upstream_step, sizeof s->in.upstream);
    s->in.w_label = s->call->options->weight ? r->w_label : 1;
    s->in.mass = s->in.w_label;
    if (s->in.label < 0) {
        csm_exact_pair(&r->row_mass, 0, &s->in.mass, &lo);
        if (r->base.flags & CSM_RECORD_POSITIVE) s->in.mass = CSM_INF;
    }
    s->in.x_label = s->in.z_label = r->label.x;
    s->in.e_label = r->label.e;
    s->in.n = r->label.n;
    return 1;
}

/* 1 if the kernels lose a gradient of the shard, 2 if they may lose one of the row, else 0. */
static int lost_in_shard(const row_state *s, const csm_loss_job *job, ptrdiff_t at) {
    const csm_loss_run *call = s->call;
    const double factor = factor_of(call, &s->in);
    const int may_lose = may_lose_gradient(call, &s->in);
    if (job->far && csm_loss_loses_slope(call, factor, job->far[at])) return 1;
    if (may_lose && holds_lost_gradient(call, s->x, &s->in, s->wide)) return 1;
    return may_lose || (job->far && csm_loss_loses_slope(call, factor, CSM_INF)) ? 2 : 0;
}

/* Finds n of every block of the shard. */
static void restore_blocks(row_state *s, size_t index) {
    const csm_call *c = &s->call->base;
    const size_t count = csm_block_count(c->shape.n);
    for (size_t b = 0; b < count; b++)
        csm_restore_block(c, s->loss_call->t, s->call->shard->merged_block_max[index * count + b], &s->blocks[b]);
}

static void finish_shard(row_state *s, const csm_loss_job *job, ptrdiff_t at, size_t index) {
    const csm_loss_run *call = s->call;
    const csm_shard *shard = call->shard;
    const csm_loss_record r = csm_loss_record_load(shard->merged + index * shard->words, shard->words);
    const ptrdiff_t is_kept = read_shard_input(s, job, at, &r);
    double *loss = &job->loss[at * job->order], shrink = 1;
    if (!is_kept) {
        *loss = 0;
        fill_row(call, s->gradient, 0, &s->poll);
        return;
    }
    s->stores_e = shard->from_e && call->is_direct; /* rows that are packed have logits in the place of the result */
    const int is_number = combine_record(s, &r, index);
    *loss = is_number ? s->row.loss : CSM_NAN;
    if (shard->stage == CSM_STAGE_LOST) {
        if (is_number && call->has_lost) shard->records[index] = lost_in_shard(s, job, at);
        return;
    }
    if (shard->stage == CSM_STAGE_FINISH && !s->gradient) return;
    restore_blocks(s, index);
    if (shard->stage == CSM_STAGE_SQUARES) {
        if (!is_number) return;
        const csm_pair_sum squares = sum_squares(s, place_of_label(s));
        csm_sum_store(&squares, shard->records + index * CSM_SUM_WORDS);
        return;
    }
    if (is_number && s->loss_call->clip_norm < CSM_INF) {
        s->kernels->factors(s->loss_call, &s->in, -1, &s->row);
        shrink = csm_loss_shrink(s->loss_call, &s->in, &s->row,
                                 csm_sum_total(shard->options->squares + index * CSM_SUM_WORDS));
    }
    if (is_number) s->kernels->factors(s->loss_call, &s->in, shrink, &s->row);
    if (!is_number || s->row.is_nan) fill_row(call, s->gradient, CSM_NAN, &s->poll);
    else write_gradient(s, place_of_label(s));
}

static void run_shard(csm_loss_run *call, row_state *s, const csm_loss_job *job, ptrdiff_t at) {
    const size_t index = (size_t)(job->loss - call->loss + at * job->order);
    if (call->shard->stage == CSM_STAGE_SHARD) {
        s->stores_e = s->gradient && call->is_direct && call->base.itemsize == call->base.wide_size;
        sum_shard(s, job, at, index);
        if (s->has_bad_label) atomic_store(&call->has_bad_label, 1);
    } else {
        finish_shard(s, job, at, index);
    }
}

static void run_row(csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, int thread, char *memory) {
    csm_call *c = &call->base;
    row_state s = state_of(call, job, at, thread, memory);
    double *loss = &job->loss[at * job->order];
    if (job->slope) s.uncapped = job->uncapped + at * job->uncapped_step;
    if (job->slope) s.slope = job->slope + at * job->slope_step;
    if (call->shard) {
        run_shard(call, &s, job, at);
        return;
    }
    if (!csm_loss_read_input(call, job, at, &s.in)) { /* the logits are not read */
        *loss = 0;
        fill_row(call, s.gradient, 0, &s.poll);
        return;
    }
    const int has_lost = s.gradient && call->has_lost && has_lost_gradient(call, job, at, &s.in, s.wide);
    s.stores_e = s.gradient && !has_lost && c->itemsize == c->wide_size;
    if (s.in.label >= 0) s.in.x_label = s.in.z_label = csm_element(c, s.x, (size_t)s.in.label);
    const int is_number = sum_row(&s);
    *loss = is_number ? s.row.loss : CSM_NAN;
    if (!s.gradient || s.is_stopped) return;
    if (is_number && has_lost) {
        write_lost_gradient(&s);
        return;
    }
    if (is_number) s.kernels->factors(s.loss_call, &s.in, clip_factor(&s), &s.row);
    if (!is_number || s.row.is_nan) fill_row(call, s.gradient, CSM_NAN, &s.poll);
    else write_gradient(&s, s.in.label);
}

ptrdiff_t csm_end_of_kernel_rows(csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, char *memory) {
    const csm_call *c = &call->base;
    csm_loss_input in;
    if (c->shape.n > CSM_BLOCK || call->shard || c->scales.always_transform) return at;
    if (!job->gradient || !call->has_lost) return (ptrdiff_t)job->rows;
    for (; at < (ptrdiff_t)job->rows; at++)
        if (csm_loss_read_input(call, job, at, &in) && has_lost_gradient(call, job, at, &in, memory)) break;
    return at;
}

csm_loss_job csm_loss_job_at(const csm_loss_job *all, ptrdiff_t at, size_t rows, void *scratch) {
    csm_loss_job job = *all;
    job.x = all->x + at * all->x_step;
    job.q = all->q ? all->q + at * all->q_step : NULL;
    job.gradient = all->gradient ? all->gradient + at * all->gradient_step : NULL;
    job.label = all->label ? all->label + at * all->order : NULL;
    job.mass = all->mass ? all->mass + at * all->order : NULL;
    job.loss = all->loss + at * all->order;
    job.weight = all->weight ? all->weight + at * all->weight_step : NULL;
    job.upstream = all->upstream ? all->upstream + at * all->upstream_step : NULL;
    job.uncapped = all->uncapped ? all->uncapped + at * all->uncapped_step : NULL;
    job.slope = all->slope ? all->slope + at * all->slope_step : NULL;
    job.far = all->far ? all->far + at : NULL;
    job.max = all->max ? all->max + at : NULL;
    job.rows_in_scratch = all->rows_in_scratch ? all->rows_in_scratch + at * all->x_step : NULL;
    job.rows = rows;
    job.scratch = scratch;
    return job;
}

void csm_run_loss_rows(csm_loss_run *call, const csm_loss_job *all, int thread, char *memory) {
    ptrdiff_t at = 0, rows = (ptrdiff_t)all->rows;
    while (at < rows) {
        const ptrdiff_t end = csm_end_of_kernel_rows(call, all, at, memory + call->e_size + call->block_size);
        if (at < end) {
            const csm_loss_job job = csm_loss_job_at(all, at, (size_t)(end - at), memory);
            at += (ptrdiff_t)call->kernels->rows(&job);
            if (at == end) continue;
        }
        run_row(call, all, at++, thread, memory);
    }
}
