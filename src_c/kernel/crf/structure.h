/* Which prefixes and suffixes of a sequence are possible at all, in plain C: looked up only where a sum is so small
 * that it must be told whether it is 0 by structure. */
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
/* after: whether a suffix that begins behind the tag is possible. */
INLINE void csm_crf_know_after(csm_crf_chain *c, size_t begin) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    for (size_t t = c->after_begin; t-- > begin;) {
        unsigned char *to = c->after + t * L;
        const unsigned char *next = to + L;
        for (size_t i = 0; i < L; i++) {
            int is_possible = t + 1 == c->n && m->end[i] > -CSM_INF;
            for (size_t j = 0; j < L && t + 1 < c->n && !is_possible; j++)
                is_possible = next[j] && m->scores[i * P + j] > -CSM_INF && c->x[(t + 1) * P + j] > -CSM_INF;
            to[i] = (unsigned char)is_possible;
        }
    }
    if (begin < c->after_begin) c->after_begin = begin;
}
/* Whether every sum below the limit that leads to position t is 0 because no prefix leads there. */
static NOINLINE int csm_crf_is_sound_before(csm_crf_chain *c, size_t t, double limit) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    const double *from = c->alpha + (t - 1) * P;
    csm_crf_know_before(c, t);
    for (size_t j = 0; j < L; j++) {
        double s = 0;
        int is_possible = 0;
        for (size_t i = 0; i < L; i++) {
            s += from[i] * m->a[i * P + j];
            is_possible |= c->before[(t - 1) * L + i] && m->scores[i * P + j] > -CSM_INF;
        }
        if (is_possible && s < 2 * limit) return 0;
    }
    return 1;
}
/* The same for the sums of a position t over its successors, whose weights are v. */
static NOINLINE int csm_crf_is_sound_after(csm_crf_chain *c, size_t t, const double *v, double limit) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    csm_crf_know_after(c, t);
    for (size_t i = 0; i < L; i++) {
        double s = 0;
        for (size_t j = 0; j < L; j++) s += v[j] * m->a[i * P + j];
        if (c->after[t * L + i] && s < 2 * limit) return 0;
    }
    return 1;
}

#endif
