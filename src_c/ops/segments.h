/* What the drivers of segments share: checks, units of work, and copies of elements in the order of a list. */
#ifndef CSM_OPS_SEGMENTS_H
#define CSM_OPS_SEGMENTS_H

#include "../core/call.h"

enum {
    CSM_CHUNK_ELEMENTS = 16 * 1024, /* of the segments of a unit, unless one is longer */
    CSM_GATHER_ELEMENTS = 4096 /* of segments and rows that are copied to scratch at a time, unless one is longer */
};

/* Whether the offsets rise within 0 to n; and the length of the longest segment, or below CSM_BLOCK a bound. */
int csm_check_segments(const csm_segments *, size_t n, size_t *longest);
/* The places, which the structure of an older caller lacks. */
static inline const void *csm_segment_places(const csm_segments *s) { return s->size < sizeof *s ? NULL : s->places; }
static inline size_t csm_segment_length(const csm_segments *s, size_t i) {
    return (size_t)(s->indptr[i + 1] - s->indptr[i]);
}

/* Segments and the rows of a call, divided into units: some neighbouring rows, and a chunk of the segments.  A chunk
 * begins at multiples of a number of elements and segments, so that it depends on nothing else. */
typedef struct csm_segment_units {
    const csm_segments *segments;
    size_t rows, inner, per; /* all rows; those along the last batch axis; those of a unit */
    size_t groups, chunks;   /* of rows along the last batch axis; of segments */
    size_t step;
} csm_segment_units;
typedef struct csm_segment_unit {
    size_t row, rows, begin, end; /* rows from `row` on, segments from begin to end - 1 */
} csm_segment_unit;
void csm_segment_divide(csm_segment_units *, const csm_segments *, const csm_shape *, size_t rows, size_t per);
size_t csm_segment_unit_count(const csm_segment_units *);
csm_segment_unit csm_segment_unit_at(const csm_segment_units *, size_t unit);
/* The end of the segments from `begin` on, up to `end`, of which `rows` rows are copied to scratch together. */
size_t csm_segment_gather_end(const csm_segments *, size_t begin, size_t end, size_t rows);

/* csm_gather and csm_scatter (of one row) of the elements at places begin to begin + k - 1 of the order, whose view
 * begins at the first element of the rows. */
void csm_gather_ordered(char *to, size_t pitch, csm_strided from, size_t rows, const csm_segments *, size_t begin,
                        size_t k, size_t size);
void csm_scatter_ordered(char *to, ptrdiff_t axis, const char *from, const csm_segments *, size_t begin, size_t k,
                         size_t size);
/* Copies all rows of a call to the order of the segments (forth), or back.  size: bytes of an element. */
csm_status csm_segment_move(csm_call *, const csm_view *to, const csm_view *from, const csm_segments *, int forth,
                            size_t rows, size_t size, int threads);

/* Writes the itemsize bytes at `fill` to the elements of all rows that are in no segment. */
csm_status csm_fill_outside(csm_call *, const csm_view *result, const csm_segments *, size_t rows, const void *fill);

#endif
