/* Scratch: buffers of each thread of a call, allocated when the thread first needs them. */
#ifndef CSM_CORE_SCRATCH_H
#define CSM_CORE_SCRATCH_H

#include "../../csoftmax/include/csoftmax.h"

typedef struct csm_buffer {
    char *data;
    size_t size;
    int is_borrowed; /* not allocated here: part of the caller's scratch, or on a stack */
} csm_buffer;

typedef struct csm_scratch {
    csm_buffer *buffers; /* those of thread 0, of thread 1, ... */
    csm_buffer *single;
    int threads, each; /* each: number of buffers of a thread */
} csm_scratch;

/* single: `each` buffers on the caller's stack, so that a call with one thread allocates no table. */
csm_status csm_scratch_begin(csm_scratch *, int threads, int each, csm_buffer *single);
/* Begins with a table that the caller supplies: threads * each buffers. */
void csm_scratch_begin_in(csm_scratch *, int threads, int each, csm_buffer *table);
void csm_scratch_end(csm_scratch *);

/* A buffer of at least `size` bytes, or NULL.  Growing a buffer discards its contents. */
char *csm_scratch_get(csm_scratch *, int thread, int which, size_t size);
/* Lends memory to a buffer that has none yet. */
void csm_scratch_lend(csm_scratch *, int thread, int which, void *memory, size_t size);

#endif
