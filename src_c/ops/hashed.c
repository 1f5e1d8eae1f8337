/* The driver of class hashing: buckets, scores of classes, and the k best of them without a number for each class.
 *
 * Top-k.  The classes of a row are cut into segments, several if there are fewer rows than threads.  A segment is
 * scored chunk by chunk behind its k best so far, from which the selection finds the k best of both; a chunk whose
 * largest score does not exceed the least of k is skipped, because of equal scores the first classes win.  The lists of
 * the segments are joined in their order, so that the result depends on neither segments nor threads.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/selection.h"

enum {
    MIN_CHUNK = 8 * CSM_HASH_BLOCK, /* classes */
    MIN_SEGMENT = 8 * MIN_CHUNK,
    SEGMENTS_OF_THREAD = 4,
    LIST_PART = 8 /* the lists of all segments have at most 1 / 8 as many classes as there are */
};

typedef struct hash_run {
    const csm_table *table;
    const csm_hash_call *call;
    csm_hash_rule rule;
    int64_t *buckets;
    float *scores;
    size_t blocks; /* of a row */
    /* top-k */
    size_t k, chunk, segment, segments; /* classes of a chunk and of a segment, segments of a row */
    float *values; /* of each segment of each row, k */
    int64_t *places;
    float *best; /* of each row */
    int64_t *best_places;
    csm_scratch scratch;
    csm_interrupt interrupt;
} hash_run;

static size_t block_length(const hash_run *run, size_t begin) {
    const size_t left = run->call->count - begin;
    return left < CSM_HASH_BLOCK ? left : CSM_HASH_BLOCK;
}

static void score_block(const hash_run *run, size_t row, size_t begin, size_t n, float *to) {
    const csm_hash_call *c = run->call;
    const float *tables = c->table + row * c->tables * (size_t)c->hash.buckets;
    const uint64_t *ids = c->ids ? c->ids + row * c->ids_row + begin : NULL;
    run->table->hash.scores(&c->hash, &run->rule, tables, c->begin + begin, ids, n, to);
}

static void start(hash_run *run, const csm_table *table, const csm_hash_call *call) {
    run->table = table;
    run->call = call;
    run->rule = (csm_hash_rule){call->tables > 1 ? (size_t)call->hash.buckets : 0, call->is_least, (float)call->divisor,
                                call->prior};
    run->blocks = (call->count + CSM_HASH_BLOCK - 1) / CSM_HASH_BLOCK;
}

static csm_status work(hash_run *run, csm_body body, size_t units, size_t unit_elements) {
    const csm_hash_call *c = run->call;
    csm_fp_environment saved = csm_fp_enter();
    csm_buffer single[2];
    run->interrupt = (csm_interrupt){.check = c->interrupt, .caller = saved};
    const int threads = csm_threads_for((double)units * (double)unit_elements, units, c->threads < 1 ? 1 : c->threads);
    csm_status status = csm_scratch_begin(&run->scratch, threads, 2, single);
    if (status == CSM_OK) {
        status = csm_parallel(units, CSM_PIECE_ELEMENTS / (unit_elements + 1) + 1, threads, body, run, &run->interrupt);
        csm_scratch_end(&run->scratch);
    }
    csm_fp_leave(run->interrupt.caller); /* the callback may have changed it */
    return status;
}

static csm_status buckets_body(void *context, size_t begin, size_t end, int thread) {
    const hash_run *run = context;
    const csm_hash_call *c = run->call;
    (void)thread;
    uint32_t bucket[CSM_HASH_BLOCK];
    for (size_t b = begin; b < end; b++) {
        const size_t first = b * CSM_HASH_BLOCK, n = block_length(run, first), hashes = c->hash.hashes;
        int64_t *to = run->buckets + first * hashes;
        for (size_t r = 0; r < hashes; r++) {
            run->table->hash.buckets(&c->hash, r, first, c->ids ? c->ids + first : NULL, n, bucket);
            for (size_t i = 0; i < n; i++) to[i * hashes + r] = bucket[i];
        }
    }
    return CSM_OK;
}

csm_status csm_run_hash_buckets(const csm_table *table, const csm_hash_call *call, int64_t *out) {
    hash_run run = {.buckets = out};
    start(&run, table, call);
    return work(&run, buckets_body, run.blocks, CSM_HASH_BLOCK * call->hash.hashes);
}

static csm_status scores_body(void *context, size_t begin, size_t end, int thread) {
    hash_run *run = context;
    const csm_hash_call *c = run->call;
    for (size_t u = begin; u < end; u++) {
        const size_t row = u / run->blocks, first = u % run->blocks * CSM_HASH_BLOCK;
        score_block(run, row, first, block_length(run, first), run->scores + row * c->count + first);
        if (csm_stops(&run->interrupt, thread, CSM_HASH_BLOCK * c->hash.hashes))
            return CSM_OK; /* csm_parallel reports */
    }
    return CSM_OK;
}

csm_status csm_run_hash_scores(const csm_table *table, const csm_hash_call *call, float *out) {
    hash_run run = {.scores = out};
    start(&run, table, call);
    return work(&run, scores_body, call->rows * run.blocks, CSM_HASH_BLOCK * call->hash.hashes);
}

/* The k best of n numbers (their places), best first.  s is set for the following ones. */
static csm_status select_best(hash_run *run, int thread, const float *from, size_t n, size_t k, csm_select *s) {
    char *memory = csm_scratch_get(&run->scratch, thread, 1, csm_select_size(n, k, sizeof(float)));
    if (!memory) return CSM_NO_MEMORY;
    *s = csm_select_at(memory, n, k, sizeof(float), csm_poll_of(&run->interrupt, thread));
    run->table->select[CSM_DTYPE_f32](from, n, k, 0, 1, s);
    return s->is_stopped ? CSM_INTERRUPTED : CSM_OK;
}

static csm_status topk_body(void *context, size_t unit, size_t end, int thread) {
    hash_run *run = context;
    const csm_hash_call *c = run->call;
    const size_t room = csm_rounded((run->k + run->chunk) * sizeof(float));
    char *memory = csm_scratch_get(&run->scratch, thread, 0,
                                   room + csm_rounded(run->k * sizeof(float)) + csm_rounded(run->k * sizeof(int64_t)));
    if (!memory) return CSM_NO_MEMORY;
    float *score = (float *)memory, *better = (float *)(memory + room); /* score: the best so far, then a chunk */
    int64_t *at = (int64_t *)(memory + room + csm_rounded(run->k * sizeof(float)));
    for (; unit < end; unit++) {
        const size_t row = unit / run->segments, begin = unit % run->segments * run->segment;
        const size_t stop = c->count - begin < run->segment ? c->count : begin + run->segment;
        float *values = run->values + unit * run->k;
        int64_t *places = run->places + unit * run->k;
        size_t kept = 0;
        for (size_t first = begin, last; first < stop; first = last) {
            last = stop - first < run->chunk ? stop : first + run->chunk;
            for (size_t i = first; i < last; i += CSM_HASH_BLOCK) {
                const size_t n = last - i < CSM_HASH_BLOCK ? last - i : CSM_HASH_BLOCK;
                score_block(run, row, i, n, score + kept + (i - first));
                if (csm_stops(&run->interrupt, thread, n * c->hash.hashes)) return CSM_OK; /* csm_parallel reports it */
            }
            const size_t n = last - first, all = kept + n, k = all < run->k ? all : run->k;
            if (kept == run->k && run->table->max[CSM_DTYPE_f32](score + kept, n) <= (double)score[kept - 1]) continue;
            csm_select s;
            csm_status status = select_best(run, thread, score, all, k, &s);
            if (status != CSM_OK) return status;
            for (size_t i = 0; i < k; i++) {
                const size_t from = (size_t)s.index[i];
                better[i] = score[from];
                at[i] = from < kept ? places[from] : (int64_t)(first + (from - kept));
            }
            memcpy(score, better, k * sizeof(float));
            memcpy(places, at, k * sizeof(int64_t));
            kept = k;
        }
        memcpy(values, score, kept * sizeof(float));
    }
    return CSM_OK;
}

/* Joins the lists of the segments of each row; a list is full unless its segment is shorter. */
static csm_status join_body(void *context, size_t begin, size_t end, int thread) {
    hash_run *run = context;
    const csm_hash_call *c = run->call;
    const size_t k = run->k;
    for (size_t row = begin; row < end; row++) {
        float *from = run->values + row * run->segments * k;
        int64_t *at = run->places + row * run->segments * k;
        size_t count = 0;
        for (size_t s = 0; s < run->segments; s++) {
            const size_t left = c->count - s * run->segment, length = left < run->segment ? left : run->segment;
            const size_t n = length < k ? length : k;
            memmove(from + count, from + s * k, n * sizeof(float));
            memmove(at + count, at + s * k, n * sizeof(int64_t));
            count += n;
        }
        csm_select s;
        csm_status status = select_best(run, thread, from, count, k, &s);
        if (status != CSM_OK) return status;
        for (size_t i = 0; i < k; i++) {
            run->best[row * k + i] = from[s.index[i]];
            run->best_places[row * k + i] = at[s.index[i]];
        }
    }
    return CSM_OK;
}

static size_t whole_blocks(size_t n) { return (n + CSM_HASH_BLOCK - 1) / CSM_HASH_BLOCK * CSM_HASH_BLOCK; }

/* Segments for all threads where there are fewer rows, and chunks of which the selection is a small part. */
static void cut(hash_run *run) {
    const csm_hash_call *c = run->call;
    const size_t threads = c->threads < 1 ? 1 : (size_t)c->threads;
    size_t segments = 1;
    if (c->rows < SEGMENTS_OF_THREAD * threads && threads > 1) segments = SEGMENTS_OF_THREAD * threads / c->rows;
    if (segments > c->count / MIN_SEGMENT) segments = c->count / MIN_SEGMENT;
    if (segments > c->count / LIST_PART / run->k) segments = c->count / LIST_PART / run->k;
    if (segments < 1) segments = 1;
    run->segment = whole_blocks((c->count + segments - 1) / segments);
    run->segments = (c->count + run->segment - 1) / run->segment;
    run->chunk = whole_blocks(2 * run->k);
    if (run->chunk < MIN_CHUNK) run->chunk = MIN_CHUNK;
    if (run->chunk > run->segment) run->chunk = run->segment;
}

csm_status csm_run_hash_topk(const csm_table *table, const csm_hash_call *call, size_t k, float *values,
                             int64_t *places) {
    hash_run run = {.k = k, .values = values, .places = places, .best = values, .best_places = places};
    start(&run, table, call);
    cut(&run);
    const size_t lists = call->rows * run.segments * k;
    char *memory = NULL;
    if (run.segments > 1) {
        memory = csm_allocate(csm_rounded(lists * sizeof(float)) + lists * sizeof(int64_t));
        if (!memory) return CSM_NO_MEMORY;
        run.values = (float *)memory;
        run.places = (int64_t *)(memory + csm_rounded(lists * sizeof(float)));
    }
    csm_status status = work(&run, topk_body, call->rows * run.segments, run.segment * call->hash.hashes);
    if (status == CSM_OK && run.segments > 1) status = work(&run, join_body, call->rows, run.segments * k);
    csm_release(memory);
    return status;
}
