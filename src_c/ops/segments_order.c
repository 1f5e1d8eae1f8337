/* Segments as data: the sort of their ids, units of work, and copies of elements in the order of a list. */
#include "segments.h"

#include "../core/extension.h"
#include "../vec/standard.h"

int csm_check_segments(const csm_segments *s, size_t n, size_t *longest) {
    if (!s || !s->indptr || s->indptr[0] < 0) return 0;
    if ((s->order || csm_segment_places(s)) && s->order_bytes != 4 && s->order_bytes != 8) return 0;
    int64_t bits = 0, most = 0;
    for (size_t i = 0; i < s->count; i++) bits |= s->indptr[i + 1] - s->indptr[i]; /* < 2 * longest; < 0: one falls */
    for (size_t i = 0; i < s->count && bits >= CSM_BLOCK; i++) {
        const int64_t length = s->indptr[i + 1] - s->indptr[i];
        most = length > most ? length : most;
    }
    *longest = (size_t)(bits < CSM_BLOCK ? bits : most);
    return bits >= 0 && (uint64_t)s->indptr[s->count] <= n;
}

/* The sort: a pass that counts, and copies the ids to `places`, so that nothing that a caller writes meanwhile can lead
 * out of the arrays; offsets; and a pass that replaces each id by the place of its element. */
#define SORT(T)                                                                                                        \
    static csm_status count_##T(size_t n, const int64_t *ids, size_t count, T *places, T *counts, int *is_sorted,      \
                                size_t *position, const csm_poll *p) {                                                 \
        int64_t last = -1, falls = 0;                                                                                  \
        for (size_t begin = 0, end; begin < n; begin = end) {                                                          \
            end = csm_poll_end(begin, n);                                                                              \
            for (size_t i = begin; i < end; i++) {                                                                     \
                const int64_t id = ids[i];                                                                             \
                if ((uint64_t)id + 1 > count) {                                                                        \
                    *position = i;                                                                                     \
                    return CSM_BAD_LABEL;                                                                              \
                }                                                                                                      \
                falls |= id < last;                                                                                    \
                last = id;                                                                                             \
                places[i] = (T)(id + 1);                                                                               \
                counts[id + 1]++;                                                                                      \
            }                                                                                                          \
            if (csm_poll_stops(p, end - begin)) return CSM_INTERRUPTED;                                                \
        }                                                                                                              \
        *is_sorted = !falls;                                                                                           \
        return CSM_OK;                                                                                                 \
    }                                                                                                                  \
    /* Counts become places of the first elements: those of no segment come first. */                                  \
    static void add_##T(size_t count, T *counts, int64_t *indptr) {                                                    \
        T sum = 0;                                                                                                     \
        for (size_t s = 0; s <= count; s++) {                                                                          \
            const T length = counts[s];                                                                                \
            counts[s] = sum;                                                                                           \
            sum += length;                                                                                             \
            indptr[s] = sum;                                                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    static csm_status place_##T(size_t n, T *places, T *next, const csm_poll *p) {                                     \
        for (size_t begin = 0, end; begin < n; begin = end) {                                                          \
            end = csm_poll_end(begin, n);                                                                              \
            for (size_t i = begin; i < end; i++) places[i] = next[places[i]]++;                                        \
            if (csm_poll_stops(p, end - begin)) return CSM_INTERRUPTED;                                                \
        }                                                                                                              \
        return CSM_OK;                                                                                                 \
    }                                                                                                                  \
    static csm_status sort_##T(size_t n, const int64_t *ids, size_t count, int64_t *indptr, T *places, int *is_sorted, \
                               size_t *position, const csm_poll *p) {                                                  \
        T *counts = csm_allocate((count + 1) * sizeof *counts);                                                        \
        if (!counts) return CSM_NO_MEMORY;                                                                             \
        memset(counts, 0, (count + 1) * sizeof *counts);                                                               \
        csm_status status = count_##T(n, ids, count, places, counts, is_sorted, position, p);                          \
        if (status == CSM_OK) add_##T(count, counts, indptr);                                                          \
        if (status == CSM_OK && !*is_sorted) status = place_##T(n, places, counts, p);                                 \
        csm_release(counts);                                                                                           \
        return status;                                                                                                 \
    }
SORT(int32_t)
SORT(int64_t)
#undef SORT

csm_status csm_run_segment_sort(size_t n, const int64_t *ids, size_t count, int64_t *indptr, void *places, int bytes,
                                int *is_sorted, size_t *position, int (*interrupt)(void *context)) {
    csm_interrupt asks = {.check = interrupt};
    const csm_poll poll = csm_poll_of(&asks, 0);
    asks.caller = csm_fp_enter();
    const csm_status status = bytes == 4 ? sort_int32_t(n, ids, count, indptr, places, is_sorted, position, &poll)
                                         : sort_int64_t(n, ids, count, indptr, places, is_sorted, position, &poll);
    csm_fp_leave(asks.caller);
    return status;
}

static inline size_t place_of(const void *list, int bytes, size_t i) {
    return bytes == 4 ? (size_t)((const int32_t *)list)[i] : (size_t)((const int64_t *)list)[i];
}

static csm_status invert(size_t n, const void *places, int bytes, void *order, int order_bytes, const csm_poll *poll) {
    for (size_t begin = 0, end; begin < n; begin = end) {
        end = csm_poll_end(begin, n);
        for (size_t i = begin; i < end; i++) {
            const size_t at = place_of(places, bytes, i);
            if (order_bytes == 4) ((int32_t *)order)[at] = (int32_t)i;
            else ((int64_t *)order)[at] = (int64_t)i;
        }
        if (csm_poll_stops(poll, end - begin)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
csm_status csm_run_invert_places(size_t n, const void *places, int bytes, void *order, int order_bytes,
                                 int (*interrupt)(void *context)) {
    csm_interrupt asks = {.check = interrupt};
    const csm_poll poll = csm_poll_of(&asks, 0);
    asks.caller = csm_fp_enter();
    const csm_status status = invert(n, places, bytes, order, order_bytes, &poll);
    csm_fp_leave(asks.caller);
    return status;
}

csm_status csm_segment_sort(size_t n, const int64_t *ids, size_t count, int64_t *indptr, void *order, int order_bytes,
                            int *is_sorted, size_t *position) {
    const int bytes = n > INT32_MAX || count >= INT32_MAX ? 8 : 4;
    if ((order_bytes != 4 && order_bytes != 8) || (order_bytes == 4 && n > INT32_MAX)) return CSM_BAD_OPTION;
    void *places = csm_allocate(n * (size_t)bytes + 1);
    if (!places) return CSM_NO_MEMORY;
    csm_status status = csm_run_segment_sort(n, ids, count, indptr, places, bytes, is_sorted, position, NULL);
    if (status == CSM_OK && !*is_sorted) status = csm_run_invert_places(n, places, bytes, order, order_bytes, NULL);
    csm_release(places);
    return status;
}

/* Units */

/* Elements and segments before a segment: rises with every segment, even without elements. */
static size_t weight_before(const csm_segments *s, size_t i) { return (size_t)(s->indptr[i] - s->indptr[0]) + i; }

/* The first segment with at least `weight` before it; count if there is none. */
static size_t first_segment(const csm_segments *s, size_t weight) {
    size_t low = 0, high = s->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (weight_before(s, middle) < weight) low = middle + 1;
        else high = middle;
    }
    return low;
}

void csm_segment_divide(csm_segment_units *u, const csm_segments *segments, const csm_shape *shape, size_t rows,
                        size_t per) {
    u->segments = segments;
    u->rows = rows;
    u->inner = shape->ndim ? shape->shape[shape->ndim - 1] : 1;
    u->per = per > u->inner ? u->inner : per;
    u->groups = (u->inner + u->per - 1) / u->per;
    u->step = CSM_CHUNK_ELEMENTS / u->per;
    if (u->step < 64) u->step = 64;
    u->chunks = segments->count ? (weight_before(segments, segments->count) - 1) / u->step + 1 : 0;
}
size_t csm_segment_unit_count(const csm_segment_units *u) { return u->rows / u->inner * u->groups * u->chunks; }
csm_segment_unit csm_segment_unit_at(const csm_segment_units *u, size_t unit) {
    const size_t chunk = unit % u->chunks, group = unit / u->chunks, inner = group % u->groups * u->per;
    csm_segment_unit at = {.row = group / u->groups * u->inner + inner,
                           .begin = first_segment(u->segments, chunk * u->step),
                           .end = first_segment(u->segments, (chunk + 1) * u->step)};
    at.rows = u->inner - inner < u->per ? u->inner - inner : u->per;
    return at;
}

size_t csm_segment_gather_end(const csm_segments *s, size_t begin, size_t end, size_t rows) {
    const size_t limit = CSM_GATHER_ELEMENTS / rows;
    size_t i = begin + 1;
    while (i < end && (size_t)(s->indptr[i + 1] - s->indptr[begin]) <= limit) i++;
    return i;
}

/* Copies */

/* Elements begin to end - 1 of some rows: gathered, to[i] = from[list[i]], or scattered, to[list[i]] = from[i]. */
typedef struct moves {
    char *to;
    const char *from;
    ptrdiff_t to_row, to_axis, from_row, from_axis;
    size_t rows;
    const void *list;
    size_t begin, end;
} moves;

/* Inlined with constant sizes, and for a single row with constant steps.  What is read or written in order is
 * prefetched, because hardware loses its streams among the misses of the other side (10^6 floats: a scatter takes 0.76
 * instead of 1.44 ms, a gather 0.86 instead of 1.15); of the other side, out-of-order execution overlaps the misses. */
static inline void move(moves m, const int scatters, const int bytes, const size_t size) {
    enum { STEP = 16, AHEAD = 1024 };
    if (m.rows == 1 && m.to_axis == (ptrdiff_t)size && m.from_axis == (ptrdiff_t)size) {
        const char *in_order = scatters ? m.from : m.to;
        for (size_t i = m.begin, end; i < m.end;) {
            end = m.end - i < STEP ? m.end : i + STEP;
            for (size_t k = 0; k < STEP * (size_t)bytes; k += 64)
                PREFETCH((const char *)((uintptr_t)m.list + (i + AHEAD) * (size_t)bytes + k));
            for (size_t k = 0; k < STEP * size; k += 64)
                PREFETCH((const char *)((uintptr_t)in_order + (i + AHEAD) * size + k));
            for (; i < end; i++) {
                const size_t at = place_of(m.list, bytes, i);
                memcpy(m.to + (scatters ? at : i) * size, m.from + (scatters ? i : at) * size, size);
            }
        }
        return;
    }
    for (size_t i = m.begin; i < m.end; i++) {
        const size_t at = place_of(m.list, bytes, i);
        char *y = m.to + (ptrdiff_t)(scatters ? at : i) * m.to_axis;
        const char *x = m.from + (ptrdiff_t)(scatters ? i : at) * m.from_axis;
        for (size_t r = 0; r < m.rows; r++) memcpy(y + (ptrdiff_t)r * m.to_row, x + (ptrdiff_t)r * m.from_row, size);
    }
}
#define FOR_SIZES(scatters)                                                                    \
    do {                                                                                       \
        if (bytes == 4 && size == 4) move(*m, scatters, 4, 4);                                 \
        else if (bytes == 4 && size == 8) move(*m, scatters, 4, 8);                            \
        else if (bytes == 4 && size == 2) move(*m, scatters, 4, 2);                            \
        else if (bytes == 4 && size == 1) move(*m, scatters, 4, 1);                            \
        else if (bytes == 4 && size == 32) move(*m, scatters, 4, 32); /* 8 heads of float32 */ \
        else move(*m, scatters, bytes, size);                                                  \
    } while (0)
static void move_sized(const moves *m, int scatters, int bytes, size_t size) {
    if (scatters) FOR_SIZES(1);
    else FOR_SIZES(0);
}
#undef FOR_SIZES

void csm_gather_ordered(char *to, size_t pitch, csm_strided from, size_t rows, const csm_segments *s, size_t begin,
                        size_t k, size_t size) {
    from.data += s->order ? 0 : (ptrdiff_t)begin * from.axis;
    if (s->order) {
        const moves m = {.to = to,
                         .from = from.data,
                         .to_row = (ptrdiff_t)pitch,
                         .to_axis = (ptrdiff_t)size,
                         .from_row = from.row,
                         .from_axis = from.axis,
                         .rows = rows,
                         .list = (const char *)s->order + begin * (size_t)s->order_bytes,
                         .end = k};
        move_sized(&m, 0, s->order_bytes, size);
    } else if (size == 1) { /* a mask */
        for (size_t r = 0; r < rows; r++)
            for (size_t j = 0; j < k; j++)
                to[r * pitch + j] = from.data[(ptrdiff_t)r * from.row + (ptrdiff_t)j * from.axis];
    } else {
        csm_gather(to, pitch, from, rows, k, size, NULL, NULL);
    }
}
void csm_scatter_ordered(char *to, ptrdiff_t axis, const char *from, const csm_segments *s, size_t begin, size_t k,
                         size_t size) {
    if (!s->order) {
        csm_scatter(to + (ptrdiff_t)begin * axis, 0, axis, from, 0, 1, k, size);
        return;
    }
    const moves m = {.to = to,
                     .from = from,
                     .to_axis = axis,
                     .from_axis = (ptrdiff_t)size,
                     .rows = 1,
                     .list = (const char *)s->order + begin * (size_t)s->order_bytes,
                     .end = k};
    move_sized(&m, 1, s->order_bytes, size);
}

typedef struct movement {
    const csm_call *call;
    const csm_view *to, *from;
    const void *list;
    int bytes, scatters;
    size_t size, inner, parts;
} movement;

static csm_status move_body(void *context, size_t begin, size_t end, int thread) {
    const movement *p = context;
    const csm_shape *shape = &p->call->shape;
    (void)thread;
    for (; begin < end; begin++) {
        const size_t row = begin / p->parts * p->inner, first = begin % p->parts * CSM_CHUNK_ELEMENTS;
        const size_t last = shape->n - first < CSM_CHUNK_ELEMENTS ? shape->n : first + CSM_CHUNK_ELEMENTS;
        moves m = {.to = (char *)p->to->data + csm_offset(shape, p->to->strides, row),
                   .from = csm_row_data(p->call, p->from, row),
                   .to_row = csm_last_stride(shape, p->to),
                   .to_axis = p->to->axis_stride,
                   .from_row = csm_last_stride(shape, p->from),
                   .from_axis = p->from->axis_stride,
                   .rows = p->inner,
                   .list = p->list,
                   .begin = first,
                   .end = last};
        const int is_run = m.to_row == (ptrdiff_t)p->size && m.from_row == m.to_row; /* rows side by side in both */
        const size_t size = is_run ? p->inner * p->size : p->size;
        if (is_run) m.rows = 1;
        move_sized(&m, p->scatters, p->bytes, size);
    }
    return CSM_OK;
}

csm_status csm_segment_move(csm_call *c, const csm_view *to, const csm_view *from, const csm_segments *s, int forth,
                            size_t rows, size_t size, int threads) {
    movement p = {.call = c, .to = to, .from = from, .bytes = s->order_bytes, .size = size};
    const void *places = csm_segment_places(s);
    p.list = places ? places : s->order;
    p.scatters = (places != NULL) == forth;
    const int is_apart = to->axis_stride == (ptrdiff_t)size && from->axis_stride == to->axis_stride;
    p.inner = is_apart || c->shape.ndim == 0 ? 1 : c->shape.shape[c->shape.ndim - 1];
    p.parts = (c->shape.n + CSM_CHUNK_ELEMENTS - 1) / CSM_CHUNK_ELEMENTS;
    const size_t units = rows / p.inner * p.parts;
    threads = csm_threads_for((double)rows * (double)c->shape.n, units, threads);
    return csm_parallel(units, CSM_PIECE_ELEMENTS / CSM_CHUNK_ELEMENTS, threads, move_body, &p, &c->interrupt);
}

/* Elements of no segment */

typedef struct outside {
    const csm_call *call;
    const csm_view *result;
    const csm_segments *segments;
    size_t count, first_count, parts; /* of a row; before the first segment; of CSM_BLOCK elements of a row */
    const void *fill;
} outside;

static csm_status fill_body(void *context, size_t begin, size_t end, int thread) {
    const outside *o = context;
    const csm_segments *s = o->segments;
    const size_t size = o->call->itemsize;
    (void)thread;
    for (; begin < end; begin++) {
        char *row = (char *)o->result->data + csm_offset(&o->call->shape, o->result->strides, begin / o->parts);
        const size_t first = begin % o->parts * CSM_BLOCK;
        for (size_t i = first; i < o->count && i < first + CSM_BLOCK; i++) {
            const size_t place = i < o->first_count ? i : (size_t)s->indptr[s->count] + i - o->first_count;
            const size_t at = s->order ? place_of(s->order, s->order_bytes, place) : place;
            memcpy(row + (ptrdiff_t)at * o->result->axis_stride, o->fill, size);
        }
    }
    return CSM_OK;
}

csm_status csm_fill_outside(csm_call *c, const csm_view *result, const csm_segments *s, size_t rows, const void *fill) {
    outside o = {.call = c, .result = result, .segments = s, .first_count = (size_t)s->indptr[0], .fill = fill};
    o.count = c->shape.n - (size_t)(s->indptr[s->count] - s->indptr[0]);
    o.parts = csm_block_count(o.count);
    if (o.count == 0) return CSM_OK;
    return csm_parallel(rows * o.parts, CSM_PIECE_ELEMENTS / CSM_BLOCK, c->threads, fill_body, &o, &c->interrupt);
}
