/* Segments as data: the sort of their ids, units of work, and copies of elements in the order of a list. */
#include "segments.h"

#include "../core/extension.h"

int csm_check_segments(const csm_segments *s, size_t n, size_t *longest) {
    if (!s || !s->indptr || (s->order && s->order_bytes != 4 && s->order_bytes != 8) || s->indptr[0] < 0) return 0;
    int64_t least = 0, most = 0;
    for (size_t i = 0; i < s->count; i++) { /* without branches: there may be as many segments as elements */
        const int64_t length = s->indptr[i + 1] - s->indptr[i];
        least = length < least ? length : least;
        most = length > most ? length : most;
    }
    *longest = (size_t)most;
    return least >= 0 && (uint64_t)s->indptr[s->count] <= n;
}

/* The sort: counts, offsets, places.  indptr[s + 1] first holds the place of the next element of segment s. */
#define PLACE(T)                                                                                            \
    static csm_status place_##T(size_t n, const int64_t *ids, int64_t *next, T *order, const csm_poll *p) { \
        for (size_t begin = 0, end; begin < n; begin = end) {                                               \
            end = csm_poll_end(begin, n);                                                                   \
            for (size_t i = begin; i < end; i++) order[next[ids[i]]++] = (T)i;                              \
            if (csm_poll_stops(p, end - begin)) return CSM_INTERRUPTED;                                     \
        }                                                                                                   \
        return CSM_OK;                                                                                      \
    }
PLACE(int32_t)
PLACE(int64_t)
#undef PLACE

static csm_status sort(size_t n, const int64_t *ids, size_t count, int64_t *indptr, void *order, int order_bytes,
                       int *is_sorted, size_t *position, const csm_poll *poll) {
    if ((order_bytes != 4 && order_bytes != 8) || (order_bytes == 4 && n > INT32_MAX)) return CSM_BAD_OPTION;
    int64_t last = -1, outside = 0;
    *is_sorted = 1;
    for (size_t s = 0; s <= count; s++) indptr[s] = 0;
    for (size_t i = 0; i < n; i++) {
        const int64_t id = ids[i];
        if (id < -1 || (id >= 0 && (uint64_t)id >= count)) {
            *position = i;
            return CSM_BAD_LABEL;
        }
        *is_sorted &= id >= last;
        last = id;
        if (id >= 0) indptr[id + 1]++;
        else outside++;
        if (csm_poll_at(poll, i)) return CSM_INTERRUPTED;
    }
    indptr[0] = outside;
    for (size_t s = 0; s < count; s++) indptr[s + 1] += indptr[s];
    if (*is_sorted) return CSM_OK;
    /* Elements of no segment are placed from 0 on, in a first pass, so that indptr needs no place for their next. */
    int64_t *next = csm_allocate((count + 1) * sizeof *next);
    if (!next) return CSM_NO_MEMORY;
    next[0] = 0;
    for (size_t s = 0; s < count; s++) next[s + 1] = indptr[s];
    const csm_status status =
        order_bytes == 4 ? place_int32_t(n, ids, next + 1, order, poll) : place_int64_t(n, ids, next + 1, order, poll);
    csm_release(next);
    return status;
}

csm_status csm_run_segment_sort(size_t n, const int64_t *ids, size_t count, int64_t *indptr, void *order,
                                int order_bytes, int *is_sorted, size_t *position, int (*interrupt)(void *context)) {
    csm_interrupt asks = {.check = interrupt};
    const csm_poll poll = csm_poll_of(&asks, 0);
    asks.caller = csm_fp_enter();
    const csm_status status = sort(n, ids, count, indptr, order, order_bytes, is_sorted, position, &poll);
    csm_fp_leave(asks.caller);
    return status;
}
csm_status csm_segment_sort(size_t n, const int64_t *ids, size_t count, int64_t *indptr, void *order, int order_bytes,
                            int *is_sorted, size_t *position) {
    return csm_run_segment_sort(n, ids, count, indptr, order, order_bytes, is_sorted, position, NULL);
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

static inline size_t place_of(const void *order, int bytes, size_t i) {
    return bytes == 4 ? (size_t)((const int32_t *)order)[i] : (size_t)((const int64_t *)order)[i];
}

/* Inlined with constant sizes, and for a single row with a constant step.  No prefetch: out-of-order execution overlaps
 * the misses, and prefetches made a gather of 10^6 floats in random order 40 % slower. */
static inline void gather(char *to, size_t pitch, csm_strided from, size_t rows, const char *order, size_t k,
                          const int bytes, const size_t size) {
    if (rows == 1 && from.axis == (ptrdiff_t)size) {
        for (size_t j = 0; j < k; j++) memcpy(to + j * size, from.data + place_of(order, bytes, j) * size, size);
        return;
    }
    for (size_t j = 0; j < k; j++) {
        const char *x = from.data + (ptrdiff_t)place_of(order, bytes, j) * from.axis;
        for (size_t r = 0; r < rows; r++) memcpy(to + r * pitch + j * size, x + (ptrdiff_t)r * from.row, size);
    }
}
static inline void scatter(char *to, ptrdiff_t row, ptrdiff_t axis, const char *from, size_t pitch, size_t rows,
                           const char *order, size_t k, const int bytes, const size_t size) {
    if (rows == 1 && axis == (ptrdiff_t)size) {
        for (size_t j = 0; j < k; j++) memcpy(to + place_of(order, bytes, j) * size, from + j * size, size);
        return;
    }
    for (size_t j = 0; j < k; j++) {
        char *y = to + (ptrdiff_t)place_of(order, bytes, j) * axis;
        for (size_t r = 0; r < rows; r++) memcpy(y + (ptrdiff_t)r * row, from + r * pitch + j * size, size);
    }
}
#define FOR_SIZES(function, ...)                                       \
    do {                                                               \
        if (bytes == 4 && size == 4) function(__VA_ARGS__, 4, 4);      \
        else if (bytes == 4 && size == 8) function(__VA_ARGS__, 4, 8); \
        else if (bytes == 4 && size == 2) function(__VA_ARGS__, 4, 2); \
        else if (bytes == 4) function(__VA_ARGS__, 4, 1);              \
        else function(__VA_ARGS__, 8, size);                           \
    } while (0)

void csm_gather_ordered(char *to, size_t pitch, csm_strided from, size_t rows, const csm_segments *s, size_t begin,
                        size_t k, size_t size) {
    const int bytes = s->order_bytes;
    from.data += s->order ? 0 : (ptrdiff_t)begin * from.axis;
    if (s->order) {
        const char *order = (const char *)s->order + begin * (size_t)bytes;
        FOR_SIZES(gather, to, pitch, from, rows, order, k);
    } else if (size == 1) { /* a mask */
        for (size_t r = 0; r < rows; r++)
            for (size_t j = 0; j < k; j++)
                to[r * pitch + j] = from.data[(ptrdiff_t)r * from.row + (ptrdiff_t)j * from.axis];
    } else {
        csm_gather(to, pitch, from, rows, k, size, NULL, NULL);
    }
}
void csm_scatter_ordered(char *to, ptrdiff_t row, ptrdiff_t axis, const char *from, size_t pitch, size_t rows,
                         const csm_segments *s, size_t begin, size_t k, size_t size) {
    const int bytes = s->order_bytes;
    if (!s->order) {
        csm_scatter(to + (ptrdiff_t)begin * axis, row, axis, from, pitch, rows, k, size);
        return;
    }
    const char *order = (const char *)s->order + begin * (size_t)bytes;
    FOR_SIZES(scatter, to, row, axis, from, pitch, rows, order, k);
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
