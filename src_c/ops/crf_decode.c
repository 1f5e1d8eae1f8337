/* Paths of a linear-chain CRF: the best ones, the most probable tags, draws, and the score of a path. */
#include "crf.h"

double csm_crf_score(const crf_sequence *s, const int64_t *tags) {
    const csm_crf_model *m = &s->call->model;
    const double *x = s->chain->x;
    const size_t P = m->pitch;
    double score = m->start[tags[0]] + x[tags[0]];
    for (size_t t = 1; t < s->n; t++) {
        score += m->scores[(size_t)tags[t - 1] * P + (size_t)tags[t]];
        score += x[t * P + (size_t)tags[t]];
    }
    score += m->end[tags[s->n - 1]];
    return score == score ? score : CSM_NAN;
}

static int64_t *path_of(const crf_sequence *s, size_t k, size_t t) {
    const csm_crf_options *o = s->call->o;
    return o->decoded + crf_row(s, t) + s->index * o->sequence_step + k * o->path_step;
}
static void write_path(const crf_sequence *s, size_t k, const int64_t *tags) {
    for (size_t t = 0; t < s->n; t++) *path_of(s, k, t) = tags ? tags[t] : s->call->o->fill;
}

/* n-best: A* from the end, whose heuristic is exact: the best prefix (Viterbi).  A node is a suffix that begins at
 * position t with a tag; its key is the score of the best path through it. */
typedef struct node {
    double key, suffix; /* suffix: score of the suffix without its first position's score */
    size_t parent, t;
    int64_t tag;
} node;
typedef struct search {
    node *nodes;
    size_t *heap;
    size_t count, size, capacity; /* nodes; nodes in the heap */
} search;

/* Whether a is better than b: the larger key, else the smaller suffix, read from the end. */
static int is_better(const search *h, size_t a, size_t b) {
    const node *x = &h->nodes[a], *y = &h->nodes[b];
    if (x->key != y->key) return x->key > y->key;
    /* Tags from the end: the suffixes are walked to their last position, so the last difference that is met is the one
     * that counts.  A suffix that is a prefix of the other one in this order comes first. */
    const size_t from = x->t > y->t ? x->t : y->t;
    size_t i = a, j = b;
    int result = x->t > y->t ? 1 : x->t < y->t ? 0 : a < b;
    while (h->nodes[i].t < from) i = h->nodes[i].parent;
    while (h->nodes[j].t < from) j = h->nodes[j].parent;
    while (i != j) {
        if (h->nodes[i].tag != h->nodes[j].tag) result = h->nodes[i].tag < h->nodes[j].tag;
        if (h->nodes[i].parent == SIZE_MAX) break;
        i = h->nodes[i].parent;
        j = h->nodes[j].parent;
    }
    return result;
}
static csm_status push(search *h, node item) {
    if (h->count == h->capacity) {
        const size_t more = h->capacity ? 2 * h->capacity : 256;
        node *nodes = csm_allocate(more * sizeof *nodes);
        size_t *heap = csm_allocate(more * sizeof *heap);
        if (!nodes || !heap) {
            csm_release(nodes);
            csm_release(heap);
            return CSM_NO_MEMORY;
        }
        if (h->count) memcpy(nodes, h->nodes, h->count * sizeof *nodes);
        if (h->size) memcpy(heap, h->heap, h->size * sizeof *heap);
        csm_release(h->nodes);
        csm_release(h->heap);
        h->nodes = nodes;
        h->heap = heap;
        h->capacity = more;
    }
    h->nodes[h->count] = item;
    size_t at = h->size++;
    h->heap[at] = h->count++;
    for (; at > 0 && is_better(h, h->heap[at], h->heap[(at - 1) / 2]); at = (at - 1) / 2) {
        const size_t other = h->heap[at];
        h->heap[at] = h->heap[(at - 1) / 2];
        h->heap[(at - 1) / 2] = other;
    }
    return CSM_OK;
}
static size_t pop(search *h) {
    const size_t best = h->heap[0];
    h->heap[0] = h->heap[--h->size];
    for (size_t at = 0;;) {
        size_t child = 2 * at + 1;
        if (child >= h->size) break;
        if (child + 1 < h->size && is_better(h, h->heap[child + 1], h->heap[child])) child++;
        if (!is_better(h, h->heap[child], h->heap[at])) break;
        const size_t other = h->heap[at];
        h->heap[at] = h->heap[child];
        h->heap[child] = other;
        at = child;
    }
    return best;
}
/* Writes the path of a node at position 0, tags[t] for each position. */
static void follow(const search *h, size_t at, int64_t *tags) {
    for (; at != SIZE_MAX; at = h->nodes[at].parent) tags[h->nodes[at].t] = h->nodes[at].tag;
}
/* Lets `found` paths be written, best first; *found is their number. */
static csm_status search_paths(crf_sequence *s, const double *delta, search *h, size_t paths, int64_t *tags,
                               size_t *found) {
    const csm_crf_model *m = &s->call->model;
    const csm_crf_chain *c = s->chain;
    const size_t L = m->tags, P = m->pitch;
    csm_status status = CSM_OK;
    *found = 0;
    for (size_t j = 0; j < L && status == CSM_OK; j++) {
        const double key = delta[(s->n - 1) * P + j] + m->end[j];
        if (key > -CSM_INF) status = push(h, (node){key, m->end[j], SIZE_MAX, s->n - 1, (int64_t)j});
    }
    while (h->size && *found < paths && status == CSM_OK) {
        const size_t at = pop(h);
        const node best = h->nodes[at];
        if (best.t == 0) {
            follow(h, at, tags + s->n * (*found)++);
            continue;
        }
        if (csm_poll_stops(&c->poll, 8 * L)) return CSM_INTERRUPTED;
        for (size_t i = 0; i < L && status == CSM_OK; i++) {
            const double suffix =
                best.suffix + c->x[best.t * P + (size_t)best.tag] + m->scores[i * P + (size_t)best.tag];
            const double key = delta[(best.t - 1) * P + i] + suffix;
            if (key > -CSM_INF) status = push(h, (node){key, suffix, at, best.t - 1, (int64_t)i});
        }
    }
    return status;
}

/* The scores of the posterior path: marginals, and 0 or -inf for the parameters. */
static csm_status search_posterior(crf_sequence *s, int64_t *tags, int *is_found) {
    const csm_crf_model *m = &s->call->model;
    csm_crf_chain *c = s->chain;
    const size_t L = m->tags, P = m->pitch;
    double *best = c->e, *delta = c->alpha; /* no longer needed; log_prob is computed anew */
    for (size_t t = 0; t < s->n; t++) {
        for (size_t j = 0; j < L; j++) {
            double top = t == 0 && m->start[j] > -CSM_INF ? 0 : -CSM_INF;
            for (size_t i = 0; i < L && t > 0; i++)
                if (m->scores[i * P + j] > -CSM_INF && delta[(t - 1) * P + i] > top) top = delta[(t - 1) * P + i];
            best[t * P + j] = top;
            delta[t * P + j] = c->x[t * P + j] > -CSM_INF ? top + c->mu[t * P + j] : -CSM_INF;
        }
        if (csm_poll_stops(&c->poll, L * L)) return CSM_INTERRUPTED;
    }
    double top = -CSM_INF;
    size_t y = 0;
    for (size_t j = 0; j < L; j++)
        if (m->end[j] > -CSM_INF && delta[(s->n - 1) * P + j] > top) {
            top = delta[(s->n - 1) * P + j];
            y = j;
        }
    *is_found = top > -CSM_INF;
    for (size_t t = s->n; t-- > 0 && *is_found;) {
        tags[t] = (int64_t)y;
        for (size_t i = 0; i < L && t > 0; i++)
            if (m->scores[i * P + y] > -CSM_INF && delta[(t - 1) * P + i] == best[t * P + y]) {
                y = i;
                break;
            }
    }
    return CSM_OK;
}
static void choose_tags(const crf_sequence *s, int64_t *tags) {
    const size_t L = s->call->model.tags, P = s->call->model.pitch;
    for (size_t t = 0; t < s->n; t++) {
        const double *mu = s->chain->mu + t * P;
        tags[t] = 0;
        for (size_t j = 1; j < L; j++)
            if (mu[j] > mu[tags[t]]) tags[t] = (int64_t)j;
    }
}

/* Scores and probabilities of the paths that were found; the scores need a sequence as it was given, the probabilities
 * one that is shifted. */
static csm_status write_paths(crf_sequence *s, const int64_t *tags, size_t found) {
    const csm_crf_options *o = s->call->o;
    const int is_bad = s->is_nan || s->is_inf;
    csm_status status = CSM_OK;
    for (size_t k = 0; k < o->paths; k++) {
        const size_t at = s->index * o->paths + k;
        write_path(s, k, k < found ? tags + k * s->n : NULL);
        o->result[at] = k < found ? crf_round(s->call, csm_crf_score(s, tags + k * s->n)) : is_bad ? CSM_NAN : -CSM_INF;
        if (o->log_prob) o->log_prob[at] = CSM_NAN;
    }
    if (!o->log_prob || found == 0) return CSM_OK;
    csm_crf_load(s, 1);
    if ((status = csm_crf_compute(s, 0)) != CSM_OK) return status;
    for (size_t k = 0; k < found && status == CSM_OK && s->outcome == CSM_CRF_DONE; k++) {
        s->chain->labels = tags + k * s->n;
        status = csm_crf_measure(s);
        o->log_prob[s->index * o->paths + k] = s->loss == 0 ? 0 : crf_round(s->call, -s->loss);
    }
    s->chain->labels = NULL;
    return status;
}

csm_status csm_crf_decode(crf_sequence *s) {
    crf_call *call = s->call;
    const csm_crf_options *o = call->o;
    csm_crf_chain *c = s->chain;
    csm_status status = CSM_OK;
    if (s->n == 0) {
        for (size_t k = 0; k < o->paths; k++) {
            const int is_first = k == 0; /* there is one empty path */
            o->result[s->index * o->paths + k] = is_first ? 0 : -CSM_INF;
            if (o->log_prob) o->log_prob[s->index * o->paths + k] = is_first ? 0 : CSM_NAN;
        }
        return CSM_OK;
    }
    int64_t *tags = (int64_t *)(void *)csm_scratch_get(&call->scratch, s->thread, CRF_LABELS,
                                                       call->longest * (o->paths ? o->paths : 1) * sizeof *tags);
    if (!tags) return CSM_NO_MEMORY;
    size_t found = 0;
    const int is_viterbi = o->method == CSM_CRF_VITERBI;
    csm_crf_load(s, !is_viterbi);
    if (is_viterbi && !s->is_nan && !s->is_inf) {
        csm_crf_outcome outcome = call->kernels->viterbi(c, c->alpha, c->mu);
        if (outcome == CSM_CRF_DONE && o->paths == 1) {
            outcome = call->kernels->trace(c, c->alpha, c->mu, tags);
            found = outcome == CSM_CRF_DONE;
        } else if (outcome == CSM_CRF_DONE) {
            search h = {0};
            status = search_paths(s, c->alpha, &h, o->paths, tags, &found);
            csm_release(h.nodes);
            csm_release(h.heap);
        }
        if (status == CSM_OK) status = crf_stopped(outcome);
    } else if (!is_viterbi) {
        status = csm_crf_compute(s, 1);
        if (status == CSM_OK && !s->is_nan && !s->is_inf && s->outcome == CSM_CRF_DONE) {
            int is_found = 1;
            if (o->method == CSM_CRF_POSTERIOR) choose_tags(s, tags);
            else status = search_posterior(s, tags, &is_found);
            found = is_found;
        }
        csm_crf_load(s, 0); /* scores before they were shifted */
    }
    if (status != CSM_OK) return status;
    return write_paths(s, tags, found);
}

/* Draws from the last position to the first: y_n by alpha(n, i) end_a(i), y_t by alpha(t, i) a(i, y_(t + 1)). */
csm_status csm_crf_draw(crf_sequence *s) {
    crf_call *call = s->call;
    const csm_crf_options *o = call->o;
    const csm_crf_model *m = &call->model;
    csm_crf_chain *c = s->chain;
    const size_t L = m->tags, P = m->pitch;
    csm_status status = CSM_OK;
    if (s->n == 0) return CSM_OK;
    csm_crf_load(s, 1);
    if ((status = csm_crf_compute(s, 0)) != CSM_OK) return status;
    if (s->is_nan || s->is_inf || s->outcome != CSM_CRF_DONE) {
        for (size_t k = 0; k < o->paths; k++) write_path(s, k, NULL);
        return CSM_OK;
    }
    const double *u = o->uniforms + (s->begin - crf_begin(o, 0)) * o->paths;
    double *weights = c->beta;
    for (size_t k = 0; k < o->paths; k++) {
        int64_t next = -1;
        for (size_t t = s->n; t-- > 0; u++) {
            double total = 0, sum = 0;
            if (s->is_slow) csm_crf_slow_weights(s, t, next, weights);
            else
                for (size_t i = 0; i < L; i++)
                    weights[i] = c->alpha[t * P + i] * (next < 0 ? m->end_a[i] : m->a_t[(size_t)next * P + i]);
            for (size_t i = 0; i < L; i++) total += weights[i];
            int64_t drawn = -1, last = 0;
            for (size_t i = 0; i < L && drawn < 0; i++) {
                sum += weights[i];
                if (weights[i] > 0) last = (int64_t)i;
                if (sum > *u * total) drawn = (int64_t)i;
            }
            next = drawn < 0 ? last : drawn;
            *path_of(s, k, t) = next;
        }
        if (csm_poll_stops(&c->poll, s->n * L)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
