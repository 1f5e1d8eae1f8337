/* Threads and interrupts. */
#ifndef CSM_CORE_PARALLEL_H
#define CSM_CORE_PARALLEL_H

#include "../../csoftmax/include/csoftmax.h"
#include "../kernel/poll.h"
#include "float_environment.h"
#include "memory.h"

#include <stdatomic.h>

typedef struct csm_interrupt {
    int (*check)(void *context);
    void *context;
    double last;               /* time of the last check, or of the call's beginning; 0 = not yet known */
    csm_fp_environment caller; /* environment in which `check` is called */
    atomic_int is_stopped;     /* the call ends with CSM_INTERRUPTED */
    char apart[CSM_ALIGN];     /* what follows is in another cache line; alignment would make small calls slower */
    size_t unchecked; /* elements since the clock was last read in csm_stops: written by the calling thread */
    struct csm_interrupt *original; /* in a copy of a call, the interrupt of the call itself, which all threads share */
} csm_interrupt;

/* Says, after work on `elements` elements within a unit, whether the call has been interrupted.  Every thread asks, at
 * least once in CSM_POLL_ELEMENTS; only the calling thread (0) runs the callback. */
int csm_stops(csm_interrupt *, int thread, size_t elements);
csm_poll csm_poll_of(csm_interrupt *, int thread); /* the same for kernels */
/* The same as the interrupt callback of a call within a call, whose context is a csm_poll. */
int csm_stops_inner(void *poll);

typedef csm_status (*csm_body)(void *context, size_t begin, size_t end, int thread);
/* Calls body on [0, units) in pieces of up to `piece` units, on up to `threads` threads, in any order.  The first
 * status that is not CSM_OK stops the call and is returned.  Fewer threads take part if others get no CPU. */
csm_status csm_parallel(size_t units, size_t piece, int threads, csm_body body, void *context, csm_interrupt *);
/* The number of threads worth starting for a number of elements in a number of units, limited to `threads`. */
int csm_threads_for(double elements, size_t units, int threads);
double csm_now(void); /* seconds */

enum {
    CSM_PIECE_ELEMENTS = 256 * 1024, /* between two readings of the clock */
    CSM_POLL_ELEMENTS = 64 * 1024 /* the same within a unit */
};

#endif
