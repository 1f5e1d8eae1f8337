/* Which prefixes of a sequence are possible at all, in plain C: looked up only where all weights of a position are so
 * small that they may be 0 by structure. */
#ifndef CSM_CRF_STRUCTURE_H
#define CSM_CRF_STRUCTURE_H

#include "job.h"

INLINE void csm_crf_know_before(csm_crf_chain *c, size_t end) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    for (size_t t = c->before_end; t < end; t++) {
        unsigned char *to = c->before + t * L;
        const unsigned char *from = to - L;
        for (size_t j = 0; j < L; j++) {
            int is_possible = t == 0 && m->start[j] > -CSM_INF;
            for (size_t i = 0; i < L && t > 0 && !is_possible; i++)
                is_possible = from[i] && m->scores[i * P + j] > -CSM_INF;
            to[j] = is_possible && c->x[t * P + j] > -CSM_INF;
        }
    }
    if (end > c->before_end) c->before_end = end;
}

#endif
