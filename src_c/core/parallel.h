/* Threads and interrupts. */
#ifndef CSM_CORE_PARALLEL_H
#define CSM_CORE_PARALLEL_H

#include "../../csoftmax/include/csoftmax.h"
#include "float_environment.h"

typedef struct csm_interrupt {
    int (*check)(void *context);
    void *context;
    double last;               /* time of the last check, or of the call's beginning; 0 = not yet known */
    csm_fp_environment caller; /* environment in which `check` is called */
} csm_interrupt;

typedef csm_status (*csm_body)(void *context, size_t begin, size_t end, int thread);
/* Calls body on [0, units) in pieces of up to `piece` units, on up to `threads` threads, in any order.  The first
 * status that is not CSM_OK stops the call and is returned. */
csm_status csm_parallel(size_t units, size_t piece, int threads, csm_body body, void *context, csm_interrupt *);
/* The number of threads worth starting for a number of elements in a number of units, limited to `threads`. */
int csm_threads_for(double elements, size_t units, int threads);
double csm_now(void); /* seconds */

enum { CSM_PIECE_ELEMENTS = 256 * 1024 }; /* between two readings of the clock */

#endif
