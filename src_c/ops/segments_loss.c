/* The driver of cross-entropy over segments.
 *
 *   labels    are copied once and checked: each is an element of its segment
 *   divisor   is known before any gradient, as that of cross-entropy; a segment without elements weighs 0
 *   segments  are rows of cross_entropy_row.c, each with its own number of classes, in place or, where their elements
 *             are not contiguous and in order, in scratch; sets of positives are rows of segments_any.c.  A segment is
 *             never split, so nothing depends on the number of threads
 *   sum       adds the losses in double, in a tree over the order in which they are stored
 */
#include "cross_entropy.h"
#include "segments.h"
#include "segments_any.h"

#include "../core/extension.h"
#include "../core/labels.h"
#include "../core/options.h"
#include "../core/reduction.h"

typedef struct segment_loss_call {
    csm_loss_run loss; /* labels and mass: those of a row one behind the other, rows in C order */
    csm_any_call any;
    csm_view losses, positives;
    const csm_segments *segments;
    csm_segment_units units;
    size_t longest;
    double divisor; /* of the mean, else 1 */
    int is_any, is_direct;
    csm_scratch scratch;
} segment_loss_call;

/* Buffers of a thread: the parts that csm_run_loss_rows needs, or those of segments_any.c; copies of segments. */
enum { ROW_BUFFER, LINES_BUFFER, BUFFERS };

static char *row_scratch(segment_loss_call *call, int thread) {
    const csm_loss_run *l = &call->loss;
    size_t size = l->e_size + l->block_size + l->wide_size;
    if (call->is_any) size = l->block_size + csm_rounded((2 * call->longest + CSM_BLOCK) * sizeof(double));
    return csm_scratch_get(&call->scratch, thread, ROW_BUFFER, size);
}

/* The number of a view that has one for each row and segment. */
static const char *number_at(const segment_loss_call *call, const csm_view *v, size_t row, size_t segment) {
    return csm_row_data(&call->loss.base, v, row) + (ptrdiff_t)segment * v->axis_stride;
}
static double double_at(const segment_loss_call *call, const csm_view *v, int is_given, size_t row, size_t segment) {
    double value = 1;
    if (is_given) memcpy(&value, number_at(call, v, row, segment), sizeof value);
    return value;
}
static double weight_at(const segment_loss_call *call, size_t row, size_t segment) {
    return double_at(call, &call->loss.sample_weight, call->loss.options->sample_weight != NULL, row, segment);
}
static double *loss_at(const segment_loss_call *call, size_t row, size_t segment) {
    return (double *)(uintptr_t)number_at(call, &call->losses, row, segment);
}
/* The place of a row's first segment among labels and masses. */
static size_t place_of(const segment_loss_call *call, size_t row) {
    return (size_t)csm_offset(&call->loss.base.shape, call->loss.order.strides, row) * call->segments->count;
}

/* A thread's copy of the call; its interrupt asks that of the call. */
typedef struct worker {
    segment_loss_call *call;
    csm_loss_run loss;
    csm_any_call any;
    csm_poll poll;
    double temperature; /* of the copies */
    int thread;
} worker;

/* Gives a worker's copies the temperature of a segment. */
static void take_temperature(worker *w, size_t row, size_t segment) {
    const segment_loss_call *call = w->call;
    if (!call->loss.options->temperatures) return;
    const double t = double_at(call, &call->loss.temperatures, 1, row, segment);
    if (t == w->temperature) return;
    w->temperature = t;
    if (call->is_any) {
        csm_set_scales(&w->any.scales, t, 0);
        return;
    }
    csm_set_scales(&w->loss.base.scales, t, csm_is_single(&call->loss.base));
    csm_loss_set_temperature(&w->loss.loss_call, t);
    csm_loss_divide(&w->loss.loss_call, call->divisor);
}

/* Gives a thread's copy of the call the length of a segment. */
static void take_length(csm_loss_run *own, size_t n) {
    own->base.shape.n = own->loss_call.n = n;
    own->loss_call.weight_sum = (double)n;
    own->loss_call.t = &own->base.scales.ordinary;
    csm_find_lost_limit(own);
    own->transformed_call = own->loss_call;
    own->transformed_call.t = &own->base.scales.transformed;
}

static void begin_worker(worker *w, segment_loss_call *call, int thread) {
    memcpy(&w->loss, &call->loss, sizeof w->loss);
    w->any = call->any;
    w->temperature = CSM_NAN; /* not yet taken */
    w->call = call;
    w->thread = thread;
    w->poll = csm_poll_of(&call->loss.base.interrupt, thread);
    memset(&w->loss.base.interrupt, 0, sizeof w->loss.base.interrupt);
    w->loss.base.interrupt.check = csm_stops_inner;
    w->loss.base.interrupt.context = &w->poll;
    w->loss.base.interrupt.caller = csm_fp_enter(); /* inside a call: the default, which it stays */
}
static csm_status status_of(worker *w) {
    const int is_stopped = atomic_load(&w->loss.base.interrupt.is_stopped) || csm_poll_stops(&w->poll, 0);
    return is_stopped ? CSM_INTERRUPTED : CSM_OK;
}

/* Neighbouring segments of one row, contiguous and in order. */
typedef struct line {
    const char *x, *q; /* of the first of them; q: soft labels, or one byte for each element */
    char *gradient;
} line;

/* Soft labels, or positives. */
static const csm_view *targets_of(const segment_loss_call *call) {
    return call->is_any ? &call->positives : call->loss.is_soft ? &call->loss.soft_labels : NULL;
}

/* The lines of segments begin to end - 1 of a row, in place or in scratch. */
static csm_status fetch(worker *w, size_t row, size_t begin, size_t end, int only_targets, line *l) {
    segment_loss_call *call = w->call;
    const csm_call *c = &call->loss.base;
    const csm_segments *s = call->segments;
    const size_t at = (size_t)s->indptr[begin], k = (size_t)s->indptr[end] - at;
    const size_t size = c->itemsize, q_size = call->is_any ? 1 : c->wide_size;
    const csm_view *targets = targets_of(call);
    *l = (line){NULL, NULL, NULL};
    if (call->is_direct) {
        l->x = csm_row_data(c, &call->loss.x, row) + at * size;
        if (targets) l->q = csm_row_data(c, targets, row) + at * q_size;
        if (call->loss.loss_call.gradient)
            l->gradient = (char *)(uintptr_t)csm_row_data(c, &call->loss.gradient, row) + at * size;
        return CSM_OK;
    }
    char *memory = csm_scratch_get(&call->scratch, w->thread, LINES_BUFFER,
                                   csm_rounded(k * size) + csm_rounded(k * q_size) + CSM_ALIGN);
    if (!memory) return CSM_NO_MEMORY;
    l->x = memory;
    l->q = targets ? memory + csm_rounded(k * size) : NULL;
    l->gradient = call->loss.loss_call.gradient ? memory : NULL;
    for (size_t i = 0; i < k; i += CSM_POLL_ELEMENTS) {
        const size_t part = k - i < CSM_POLL_ELEMENTS ? k - i : CSM_POLL_ELEMENTS;
        if (!only_targets)
            csm_gather_ordered(memory + i * size, 0, csm_row_of(c, &call->loss.x, row), 1, s, at + i, part, size);
        if (targets)
            csm_gather_ordered((char *)(uintptr_t)l->q + i * q_size, 0, csm_row_of(c, targets, row), 1, s, at + i, part,
                               q_size);
        if (k > CSM_POLL_ELEMENTS && csm_poll_stops(&w->poll, part)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

/* Calls work for the lines of a unit's rows. */
static csm_status for_lines(worker *w, size_t unit, int only_targets,
                            csm_status (*work)(worker *, size_t row, size_t begin, size_t end, const line *)) {
    const csm_segments *s = w->call->segments;
    const csm_segment_unit u = csm_segment_unit_at(&w->call->units, unit);
    for (size_t row = u.row; row < u.row + u.rows; row++)
        for (size_t begin = u.begin, end; begin < u.end; begin = end) {
            line l;
            end = csm_segment_gather_end(s, begin, u.end, 1);
            csm_status status = fetch(w, row, begin, end, only_targets, &l);
            if (status == CSM_OK) status = work(w, row, begin, end, &l);
            if (status != CSM_OK) return status;
        }
    return CSM_OK;
}

/* The masses of soft labels. */
static csm_status find_masses(worker *w, size_t row, size_t begin, size_t end, const line *l) {
    const segment_loss_call *call = w->call;
    const csm_segments *s = call->segments;
    const size_t size = call->loss.base.wide_size;
    char *memory = row_scratch(w->call, w->thread);
    if (!memory) return CSM_NO_MEMORY;
    for (size_t i = begin; i < end; i++) {
        const csm_strided q = {l->q + (size_t)(s->indptr[i] - s->indptr[begin]) * size, 0, (ptrdiff_t)size};
        w->loss.base.shape.n = csm_segment_length(s, i);
        const csm_status status = csm_find_mass(&w->loss, q, 0, memory, &w->loss.mass[place_of(call, row) + i]);
        if (status != CSM_OK) return status;
    }
    if (atomic_load(&w->loss.has_bad_label)) atomic_store(&w->call->loss.has_bad_label, 1);
    return status_of(w);
}
static csm_status mass_body(void *context, size_t begin, size_t end, int thread) {
    worker w;
    csm_status status = CSM_OK;
    begin_worker(&w, context, thread);
    for (; begin < end && status == CSM_OK; begin++) status = for_lines(&w, begin, 1, find_masses);
    return status;
}

/* Losses and gradients */

/* Converts k elements of storage to double. */
static void widen_to_double(const csm_call *c, const char *from, double *to, size_t k) {
    enum { AT_ONCE = 256 };
    if (c->wide_size == 8) {
        c->table->widen[c->dtype](from, to, k);
        return;
    }
    for (size_t i = 0; i < k; i += AT_ONCE) {
        float part[AT_ONCE];
        const size_t count = k - i < AT_ONCE ? k - i : AT_ONCE;
        c->table->widen[c->dtype](from + i * c->itemsize, part, count);
        for (size_t j = 0; j < count; j++) to[i + j] = (double)part[j];
    }
}

static void run_any(worker *w, size_t row, size_t segment, const line *l, size_t at, char *memory) {
    const segment_loss_call *call = w->call;
    const csm_call *c = &call->loss.base;
    const csm_loss_options *o = call->loss.options;
    const size_t n = csm_segment_length(call->segments, segment), size = c->itemsize;
    const double weight = weight_at(call, row, segment);
    const double factor = 1 / call->divisor * double_at(call, &call->loss.upstream, o->upstream != NULL, row, segment);
    double *x = (double *)(void *)(memory + call->loss.block_size), *loss = loss_at(call, row, segment);
    char *gradient = l->gradient ? l->gradient + at * size : NULL;
    if (weight == 0) {
        *loss = 0;
        if (gradient) memset(gradient, 0, n * size);
        return;
    }
    for (size_t begin = 0; begin < n; begin += CSM_BLOCK) {
        const size_t k = csm_block_length(n, begin);
        if (begin > 0 && csm_poll_stops(&w->poll, k)) return;
        widen_to_double(c, l->x + (at + begin) * size, x + begin, k);
    }
    take_temperature(w, row, segment);
    *loss = csm_any_row(&w->any, x, (const unsigned char *)l->q + at, n, weight, gradient != NULL, factor,
                        x + call->longest, (csm_block *)(void *)memory, &w->poll);
    for (size_t j = 0; j < n && gradient; j++) {
        csm_put(c, gradient + j * size, x[j]);
        if (csm_poll_at(&w->poll, j)) return;
    }
}

static void run_labels(worker *w, size_t row, size_t segment, const line *l, size_t at, char *memory) {
    const segment_loss_call *call = w->call;
    const csm_loss_options *o = call->loss.options;
    const csm_call *c = &call->loss.base;
    csm_loss_run *own = &w->loss;
    const size_t place = place_of(call, row) + segment;
    take_temperature(w, row, segment);
    take_length(own, csm_segment_length(call->segments, segment));
    csm_loss_job job = {.call = &own->loss_call,
                        .x = l->x + at * c->itemsize,
                        .q = l->q ? l->q + at * c->wide_size : NULL,
                        .gradient = l->gradient ? l->gradient + at * c->itemsize : NULL,
                        .label = own->labels ? own->labels + place : NULL,
                        .mass = own->mass ? own->mass + place : NULL,
                        .loss = loss_at(call, row, segment),
                        .rows = 1};
    if (o->sample_weight) job.weight = number_at(call, &call->loss.sample_weight, row, segment);
    if (o->upstream) job.upstream = number_at(call, &call->loss.upstream, row, segment);
    csm_run_loss_rows(own, &job, 0, memory);
}

static csm_status run_line(worker *w, size_t row, size_t begin, size_t end, const line *l) {
    segment_loss_call *call = w->call;
    const csm_call *c = &call->loss.base;
    const csm_segments *s = call->segments;
    char *memory = row_scratch(call, w->thread);
    if (!memory) return CSM_NO_MEMORY;
    for (size_t i = begin; i < end; i++) {
        const size_t at = (size_t)(s->indptr[i] - s->indptr[begin]);
        if (csm_segment_length(s, i) == 0) *loss_at(call, row, i) = 0;
        else if (call->is_any) run_any(w, row, i, l, at, memory);
        else run_labels(w, row, i, l, at, memory);
    }
    const csm_status status = status_of(w);
    if (status != CSM_OK || !l->gradient || call->is_direct) return status;
    const size_t first = (size_t)s->indptr[begin], k = (size_t)s->indptr[end] - first;
    csm_scatter_ordered((char *)call->loss.gradient.data + csm_offset(&c->shape, call->loss.gradient.strides, row),
                        call->loss.gradient.axis_stride, l->gradient, s, first, k, c->itemsize);
    return CSM_OK;
}
static csm_status loss_body(void *context, size_t begin, size_t end, int thread) {
    worker w;
    csm_status status = CSM_OK;
    begin_worker(&w, context, thread);
    for (; begin < end && status == CSM_OK; begin++) status = for_lines(&w, begin, 0, run_line);
    return status;
}

/* The call */

/* Copies the labels; checks that each is an element of its segment. */
static csm_status read_labels(segment_loss_call *call, const csm_shape *shape, csm_loss_options *o, size_t rows) {
    const size_t count = call->segments->count;
    csm_view labels = *o->labels;
    csm_shape of_labels = *shape;
    if (shape->ndim == CSM_MAX_NDIM) return CSM_BAD_SHAPE;
    of_labels.shape[of_labels.ndim] = count;
    labels.strides[of_labels.ndim++] = labels.axis_stride;
    of_labels.n = shape->n;
    const csm_view *given = o->labels;
    o->labels = &labels;
    const csm_status status = csm_read_labels(&of_labels, o, rows * count, call->loss.labels);
    o->labels = given;
    for (size_t i = 0; status == CSM_OK && i < rows * count; i++) {
        if (call->loss.labels[i] < (int64_t)csm_segment_length(call->segments, i % count)) continue;
        o->position = i;
        return CSM_BAD_LABEL;
    }
    return status;
}

/* The number by which the sum of the losses is divided; the losses, not yet in use, hold the terms. */
static double find_divisor(segment_loss_call *call, size_t rows) {
    const csm_loss_options *o = call->loss.options;
    const size_t count = call->segments->count;
    size_t kept = 0;
    if (o->reduction != CSM_MEAN) return 1;
    for (size_t row = 0; row < rows; row++) {
        const size_t place = place_of(call, row);
        for (size_t i = 0; i < count; i++) {
            const double s = weight_at(call, row, i);
            const int is_kept = call->is_any        ? csm_segment_length(call->segments, i) > 0
                                : call->loss.labels ? call->loss.labels[place + i] >= 0
                                                    : 1;
            double term = is_kept ? s : 0;
            if (call->loss.mass) term = csm_segment_length(call->segments, i) ? s * call->loss.mass[place + i] : 0;
            kept += (size_t)is_kept;
            *loss_at(call, row, i) = term;
        }
    }
    if (!call->loss.mass && !o->sample_weight) return (double)kept;
    return csm_tree_sum(call->losses.data, rows * count);
}

static csm_status clear(segment_loss_call *call, size_t rows) {
    const uint64_t zero = 0;
    const int64_t nothing[2] = {0, 0};
    const csm_segments none = {sizeof none, 0, nothing, NULL, 8, NULL};
    if (!call->loss.loss_call.gradient) return CSM_OK;
    return csm_fill_outside(&call->loss.base, &call->loss.gradient, &none, rows, &zero);
}

static csm_status compute(segment_loss_call *call, const csm_shape *shape, csm_loss_options *o, size_t rows,
                          double *total) {
    csm_call *c = &call->loss.base;
    const size_t units = csm_segment_unit_count(&call->units), numbers = rows * call->segments->count;
    const size_t piece = CSM_PIECE_ELEMENTS / CSM_CHUNK_ELEMENTS;
    const uint64_t zero = 0;
    csm_status status = CSM_OK;
    if (call->loss.labels) status = read_labels(call, shape, o, rows);
    if (call->loss.is_soft && status == CSM_OK)
        status = csm_parallel(units, piece, c->threads, mass_body, call, &c->interrupt);
    if (status != CSM_OK) return status;
    if (atomic_load(&call->loss.has_bad_label)) return CSM_BAD_LABEL;
    const double divisor = call->divisor = find_divisor(call, rows);
    csm_loss_divide(&call->loss.loss_call, divisor);
    if (csm_loss_is_empty(&call->loss.loss_call)) {
        *total = CSM_NAN;
        return clear(call, rows);
    }
    if (call->loss.loss_call.gradient) status = csm_fill_outside(c, &call->loss.gradient, call->segments, rows, &zero);
    if (status == CSM_OK) status = csm_parallel(units, piece, c->threads, loss_body, call, &c->interrupt);
    if (status != CSM_OK) return status;
    double *losses = call->losses.data;
    if (o->reduction != CSM_NONE) *total = csm_finish_loss(csm_tree_sum(losses, numbers) / divisor, csm_is_single(c));
    for (size_t i = 0; o->reduction == CSM_NONE && csm_is_single(c) && i < numbers; i++)
        losses[i] = (double)(float)losses[i];
    return CSM_OK;
}

static int is_fraction(double x) { return x >= 0 && x <= 1; }

static csm_status prepare(segment_loss_call *call, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                          const csm_segments *segments, const csm_view *x, const csm_view *gradient,
                          const csm_view *losses, csm_loss_options *o) {
    csm_loss_run *l = &call->loss;
    csm_call *c = &l->base;
    if (!o->temperatures && !csm_is_loss_temperature(o->temperature)) return CSM_BAD_TEMPERATURE;
    if (!is_fraction(o->label_smoothing) || !(o->z_loss >= 0 && o->z_loss < CSM_INF) || !(o->clip_norm >= 0) ||
        !(o->clip_value >= 0) || (o->labels != NULL) + (o->soft != NULL) + (o->positives != NULL) != 1 || o->weight ||
        o->softcap != 0 || (o->positives && o->label_smoothing > 0) || (unsigned)o->reduction > CSM_MEAN ||
        !csm_check_segments(segments, shape->n, &call->longest) || (csm_segment_places(segments) && !segments->order))
        return CSM_BAD_OPTION;
    csm_status status =
        csm_lay_out(c, shape,
                    (const csm_view *[]){x, NULL, losses, gradient, o->soft, o->sample_weight, o->upstream,
                                         o->positives, o->temperatures},
                    (csm_view *[]){&l->x, &l->order, &call->losses, gradient ? &l->gradient : NULL,
                                   o->soft ? &l->soft_labels : NULL, o->sample_weight ? &l->sample_weight : NULL,
                                   o->upstream ? &l->upstream : NULL, o->positives ? &call->positives : NULL,
                                   o->temperatures ? &l->temperatures : NULL},
                    9, &l->rows);
    if (status != CSM_OK) return status;
    const double temperature = o->temperatures ? 1 : o->temperature;
    csm_set_dtype(c, dtype, table);
    csm_set_scales(&c->scales, temperature, csm_is_single(c));
    l->options = o;
    l->is_soft = o->soft != NULL;
    l->kernels = &table->loss[dtype];
    l->wide_kernels = &table->loss[c->wide_dtype];
    l->loss_call = csm_loss_call_of(o, shape->n, gradient != NULL);
    call->segments = segments;
    for (size_t row = 0; o->temperatures && row < l->rows; row++)
        for (size_t i = 0; i < segments->count; i++)
            if (!csm_is_loss_temperature(double_at(call, &l->temperatures, 1, row, i))) return CSM_BAD_TEMPERATURE;
    call->is_any = o->positives != NULL;
    call->any = (csm_any_call){.table = table,
                               .z_loss = o->z_loss,
                               .clip_norm = l->loss_call.clip_norm,
                               .clip_value = l->loss_call.clip_value};
    csm_set_scales(&call->any.scales, temperature, 0);
    call->is_direct =
        !segments->order && csm_is_contiguous(&c->shape, &l->x, c->itemsize, 1) &&
        (!gradient || csm_is_contiguous(&c->shape, &l->gradient, c->itemsize, 1)) &&
        (!targets_of(call) || csm_is_contiguous(&c->shape, targets_of(call), call->is_any ? 1 : c->wide_size, 1));
    const size_t block = call->longest < CSM_BLOCK ? call->longest : CSM_BLOCK;
    l->e_size = csm_rounded((csm_loss_scratch(block, 1) + 16) * c->wide_size);
    l->wide_size = csm_rounded(block * c->wide_size);
    l->block_size = csm_rounded((csm_block_count(call->longest) + 2) * sizeof(csm_block));
    return CSM_OK;
}

static csm_status run_segment_loss(segment_loss_call *call, const csm_shape *shape, double *total,
                                   csm_loss_options *o) {
    csm_call *c = &call->loss.base;
    const csm_segments *s = call->segments;
    const size_t rows = call->loss.rows;
    csm_buffer single[BUFFERS];
    if (rows == 0) {
        *total = o->reduction == CSM_MEAN ? CSM_NAN : 0;
        return CSM_OK;
    }
    if (s->count && rows > SIZE_MAX / sizeof(double) / s->count) return CSM_BAD_SHAPE;
    csm_segment_divide(&call->units, s, &c->shape, rows, 1);
    const size_t units = csm_segment_unit_count(&call->units);
    const double elements = (double)rows * (double)(s->indptr[s->count] - s->indptr[0]);
    c->threads = csm_threads_for(elements, units, o->threads < 1 ? 1 : o->threads);
    void *memory = call->is_any ? NULL : csm_allocate((rows * s->count + 1) * sizeof(double));
    if (!memory && !call->is_any) return CSM_NO_MEMORY;
    if (o->labels) call->loss.labels = memory;
    else if (o->soft) call->loss.mass = memory;
    csm_status status = csm_scratch_begin(&call->scratch, c->threads, BUFFERS, single);
    if (status == CSM_OK) {
        status = compute(call, shape, o, rows, total);
        csm_scratch_end(&call->scratch);
    }
    csm_release(memory);
    return status;
}

csm_status csm_run_segment_loss(csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                                const csm_segments *segments, const csm_view *x, const csm_view *gradient,
                                const csm_view *losses, double *total, csm_loss_options *o) {
    segment_loss_call call;
    if (!o) return CSM_BAD_OPTION; /* labels are required */
    csm_loss_options known = csm_default_loss_options(), *used = csm_known_options(&known, sizeof known, o);
    csm_fp_environment saved = csm_fp_enter();
    memset(&call, 0, sizeof call);
    csm_status status = prepare(&call, dtype, table, shape, segments, x, gradient, losses, used);
    if (status == CSM_OK) {
        call.loss.base.interrupt =
            (csm_interrupt){.check = used->interrupt, .context = used->interrupt_context, .caller = saved};
        status = run_segment_loss(&call, shape, total, used);
        saved = call.loss.base.interrupt.caller; /* the callback may have changed it */
    }
    o->position = used->position;
    csm_fp_leave(saved);
    return status;
}

/* The functions of csoftmax.h */

static csm_status run_public(csm_dtype dtype, const csm_shape *shape, const csm_segments *segments, const csm_view *x,
                             const csm_view *gradient, double *loss, csm_loss_options *o) {
    csm_view losses = {.data = loss, .axis_stride = sizeof(double)};
    if (!segments || !segments->indptr || shape->ndim > CSM_MAX_NDIM) return CSM_BAD_OPTION;
    size_t step = segments->count * sizeof(double);
    for (size_t i = shape->ndim; i-- > 0; step *= shape->shape[i]) losses.strides[i] = (ptrdiff_t)step;
    return csm_run_segment_loss(dtype, csm_current_table(), shape, segments, x, gradient, &losses,
                                loss + step / sizeof(double), o);
}

#define CROSS_ENTROPY(suffix, storage, compute)                                                              \
    csm_status csm_segment_cross_entropy_##suffix(const csm_shape *shape, const csm_segments *segments,      \
                                                  const csm_view *x, const csm_view *gradient, double *loss, \
                                                  csm_loss_options *o) {                                     \
        return run_public(CSM_DTYPE_##suffix, shape, segments, x, gradient, loss, o);                        \
    }
CSM_DTYPES(CROSS_ENTROPY)
