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
    LIST_PART = 8, /* the lists of all segments have at most 1 / 8 as many classes as there are */
    FEW_ROWS = 3   /* so many rows are scored one by one */
};

typedef struct hash_run {
    const csm_table *table;
    const csm_hash_call *call;
    csm_hash_rule rule;
    int64_t *buckets;
    float *scores;
    size_t blocks;        /* of a row */
    size_t group, groups; /* rows that are scored together, 1 or CSM_HASH_ROWS, and how often */
    float *beside;        /* tables of groups with the rows side by side */
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

/* Scores of the rows of a group: to[row]. */
static void score_block(const hash_run *run, size_t group, size_t begin, size_t n, float *const *to) {
    const csm_hash_call *c = run->call;
    const size_t row = group * run->group, size = c->tables * (size_t)c->hash.buckets;
    const uint64_t *ids = c->ids ? c->ids + row * c->ids_row + begin : NULL;
    if (run->group == 1) {
        run->table->hash.scores(&c->hash, &run->rule, c->table + row * size, c->begin + begin, ids, n, to[0]);
        return;
    }
    const size_t left = c->rows - row, rows = left < run->group ? left : run->group;
    run->table->hash.scores_of_rows(&c->hash, &run->rule, run->beside + row * size, c->begin + begin, ids, n, rows, to);
}

/* The tables of each group of rows side by side, 0 for rows that are not there. */
static csm_status lay_beside(hash_run *run) {
    const csm_hash_call *c = run->call;
    const size_t size = c->tables * (size_t)c->hash.buckets;
    run->group = CSM_HASH_ROWS;
    run->groups = (c->rows + CSM_HASH_ROWS - 1) / CSM_HASH_ROWS;
    run->beside = csm_allocate(run->groups * CSM_HASH_ROWS * size * sizeof(float));
    if (!run->beside) return CSM_NO_MEMORY;
    for (size_t g = 0; g < run->groups; g++)
        for (size_t i = 0; i < size; i++)
            for (size_t row = 0; row < CSM_HASH_ROWS; row++) {
                const size_t at = g * CSM_HASH_ROWS + row;
                run->beside[(g * size + i) * CSM_HASH_ROWS + row] = at < c->rows ? c->table[at * size + i] : 0;
            }
    return CSM_OK;
}

/* Begins a run; some rows of the same classes are scored together if there are more classes than buckets. */
static csm_status start(hash_run *run, const csm_table *table, const csm_hash_call *call) {
    run->table = table;
    run->call = call;
    run->rule = (csm_hash_rule){call->tables > 1 ? (size_t)call->hash.buckets : 0, call->is_least, (float)call->divisor,
                                call->prior};
    run->blocks = (call->count + CSM_HASH_BLOCK - 1) / CSM_HASH_BLOCK;
    run->group = 1;
    run->groups = call->rows;
    return call->rows > FEW_ROWS && call->ids_row == 0 && call->count > call->hash.buckets ? lay_beside(run) : CSM_OK;
}

static csm_status work(hash_run *run, csm_body body, size_t units, size_t unit_elements) {
    const csm_hash_call *c = run->call;
    csm_fp_environment saved = csm_fp_enter();
    csm_buffer single[3];
    run->interrupt = (csm_interrupt){.check = c->interrupt, .caller = saved};
    const int threads = csm_threads_for((double)units * (double)unit_elements, units, c->threads < 1 ? 1 : c->threads);
    csm_status status = csm_scratch_begin(&run->scratch, threads, 3, single);
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
    start(&run, table, call); /* there are no rows */
    return work(&run, buckets_body, run.blocks, CSM_HASH_BLOCK * call->hash.hashes);
}

static csm_status scores_body(void *context, size_t begin, size_t end, int thread) {
    hash_run *run = context;
    const csm_hash_call *c = run->call;
    for (size_t u = begin; u < end; u++) {
        const size_t group = u / run->blocks, first = u % run->blocks * CSM_HASH_BLOCK;
        float *to[CSM_HASH_ROWS];
        for (size_t i = 0; i < run->group; i++) {
            const size_t row = group * run->group + i;
            to[i] = row < c->rows ? run->scores + row * c->count + first : NULL;
        }
        score_block(run, group, first, block_length(run, first), to);
        if (csm_stops(&run->interrupt, thread, CSM_HASH_BLOCK * c->hash.hashes))
            return CSM_OK; /* csm_parallel reports */
    }
    return CSM_OK;
}

csm_status csm_run_hash_scores(const csm_table *table, const csm_hash_call *call, float *out) {
    hash_run run = {.scores = out};
    csm_status status = start(&run, table, call);
    if (status == CSM_OK)
        status = work(&run, scores_body, run.groups * run.blocks, CSM_HASH_BLOCK * call->hash.hashes * run.group);
    csm_release(run.beside);
    return status;
}

/* The k best of n numbers (their places), best first.  s is set for the following ones. */
static csm_status select_best(hash_run *run, int thread, const float *from, size_t n, size_t k, csm_select *s) {
    char *memory = csm_scratch_get(&run->scratch, thread, 1, csm_select_size(n, k, sizeof(float)));
    if (!memory) return CSM_NO_MEMORY;
    *s = csm_select_at(memory, n, k, sizeof(float), csm_poll_of(&run->interrupt, thread));
    run->table->select[CSM_DTYPE_f32](from, n, k, 0, 1, s);
    return s->is_stopped ? CSM_INTERRUPTED : CSM_OK;
}

/* Finds the k best of the best so far (kept: at score, best first; their places) and the n scores behind them. */
static csm_status improve(hash_run *run, int thread, float *score, int64_t *places, size_t kept, size_t first,
                          size_t n) {
    const size_t all = kept + n, k = all < run->k ? all : run->k;
    if (kept == run->k && run->table->max[CSM_DTYPE_f32](score + kept, n) <= (double)score[kept - 1]) return CSM_OK;
    char *memory = csm_scratch_get(&run->scratch, thread, 2, run->k * (sizeof(int64_t) + sizeof(float)));
    if (!memory) return CSM_NO_MEMORY;
    int64_t *at = (int64_t *)memory;
    float *better = (float *)(at + run->k);
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
    return CSM_OK;
}

static csm_status topk_body(void *context, size_t unit, size_t end, int thread) {
    hash_run *run = context;
    const csm_hash_call *c = run->call;
    const size_t room = csm_rounded((run->k + run->chunk) * sizeof(float)); /* the best so far, then a chunk */
    char *memory = csm_scratch_get(&run->scratch, thread, 0, run->group * room);
    if (!memory) return CSM_NO_MEMORY;
    for (; unit < end; unit++) {
        const size_t group = unit / run->segments, part = unit % run->segments, begin = part * run->segment;
        const size_t stop = c->count - begin < run->segment ? c->count : begin + run->segment;
        const size_t first_row = group * run->group, left = c->rows - first_row;
        const size_t rows = left < run->group ? left : run->group;
        size_t kept = 0; /* the same for all rows */
        for (size_t first = begin, last; first < stop; first = last) {
            last = stop - first < run->chunk ? stop : first + run->chunk;
            for (size_t i = first; i < last; i += CSM_HASH_BLOCK) {
                const size_t n = last - i < CSM_HASH_BLOCK ? last - i : CSM_HASH_BLOCK;
                float *to[CSM_HASH_ROWS];
                for (size_t row = 0; row < rows; row++) to[row] = (float *)(memory + row * room) + kept + (i - first);
                score_block(run, group, i, n, to);
                if (csm_stops(&run->interrupt, thread, n * c->hash.hashes)) return CSM_OK; /* csm_parallel reports it */
            }
            for (size_t row = 0; row < rows; row++) {
                int64_t *places = run->places + ((first_row + row) * run->segments + part) * run->k;
                csm_status status =
                    improve(run, thread, (float *)(memory + row * room), places, kept, first, last - first);
                if (status != CSM_OK) return status;
            }
            kept = kept + (last - first) < run->k ? kept + (last - first) : run->k;
        }
        for (size_t row = 0; row < rows; row++)
            memcpy(run->values + ((first_row + row) * run->segments + part) * run->k, memory + row * room,
                   kept * sizeof(float));
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
    if (run->groups < SEGMENTS_OF_THREAD * threads && threads > 1)
        segments = SEGMENTS_OF_THREAD * threads / run->groups;
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
    csm_status status = start(&run, table, call);
    cut(&run);
    const size_t lists = call->rows * run.segments * k;
    char *memory = NULL;
    if (status == CSM_OK && run.segments > 1) {
        memory = csm_allocate(csm_rounded(lists * sizeof(float)) + lists * sizeof(int64_t));
        if (memory) {
            run.values = (float *)memory;
            run.places = (int64_t *)(memory + csm_rounded(lists * sizeof(float)));
        } else {
            status = CSM_NO_MEMORY;
        }
    }
    if (status == CSM_OK)
        status = work(&run, topk_body, run.groups * run.segments, run.segment * call->hash.hashes * run.group);
    if (status == CSM_OK && run.segments > 1) status = work(&run, join_body, call->rows, run.segments * k);
    csm_release(memory);
    csm_release(run.beside);
    return status;
}
