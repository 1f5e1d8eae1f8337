/* Threads and interrupts. */
#ifndef CSM_CORE_PARALLEL_H
#define CSM_CORE_PARALLEL_H

#include "../../csoftmax/include/csoftmax.h"
#include "float_environment.h"

typedef struct csm_interrupt {
    int (*check)(void *context);
    void *context;
    double last;               /* when it was last called, or the call began; 0 = not yet known */
    csm_fp_environment caller; /* in which it is called */
} csm_interrupt;

typedef csm_status (*csm_body)(void *context, size_t begin, size_t end, int thread);
/* Calls body on [0, units) in pieces of at most `piece` units, on at most `threads` threads, in any order.  The first
 * status that is not CSM_OK stops the call and is returned. */
csm_status csm_parallel(size_t units, size_t piece, int threads, csm_body body, void *context, csm_interrupt *);
/* The number of threads worth starting for so many elements in so many units, limited to `threads`. */
int csm_threads_for(double elements, size_t units, int threads);
double csm_now(void); /* seconds */

enum { CSM_PIECE_ELEMENTS = 256 * 1024 }; /* between two looks at the clock */

#endif
