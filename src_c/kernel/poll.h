/* How a loop over a long row finds out that its call has been interrupted.  Kernels on a device never ask. */
#ifndef CSM_KERNEL_POLL_H
#define CSM_KERNEL_POLL_H

#include "../vec/standard.h"

enum { CSM_POLL_STEP = 8192 }; /* elements between two questions: microseconds, and a question costs nanoseconds */
typedef struct csm_poll {
    int (*stops)(void *context, int thread, size_t elements); /* csm_stops */
    void *context;
    int thread;
} csm_poll;
static inline int csm_poll_stops(const csm_poll *p, size_t elements) {
#ifdef CSM_ON_DEVICE
    (void)p, (void)elements;
    return 0;
#else
    return p->stops && p->stops(p->context, p->thread, elements);
#endif
}
/* The end of the step that begins at `begin`: loops that are cheap for each element ask between their steps. */
static inline size_t csm_poll_end(size_t begin, size_t count) {
    return count - begin < CSM_POLL_STEP ? count : begin + CSM_POLL_STEP;
}
/* For loops of single elements: asks at the end of each step. */
static inline int csm_poll_at(const csm_poll *p, size_t i) {
    return i % CSM_POLL_STEP == CSM_POLL_STEP - 1 && csm_poll_stops(p, CSM_POLL_STEP);
}

#endif
