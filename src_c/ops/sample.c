/* The driver of sampling: temperature, top-k, top-p, min-p, then the inverse of the cumulative distribution at one
 * uniform number for each draw.
 *
 * Each class owns an interval of [0, 1), in the order of the indices.  The kernels select classes in falling order,
 * ties by lowest index; those that top-k and top-p keep are put back into the order of the indices.  Masses are the e'
 * of softmax, equal on every instruction set.  The sum of a block is the kernels', sums over blocks are exact and
 * rounded once (math/exact.h); within a block they run from the first to the last in double, and so does the sum that
 * top-p compares, in falling order.  So a draw depends only on the row, its parameters and its uniform number, and the
 * threads may share the blocks and the draws of a row.
 *
 * A long row is read once for the sums of its blocks; of its e' only those of blocks in which draws land are computed
 * again, so that nothing of its length is stored: (1, 10^8) takes 0.3 of the time of softmax.
 *
 * top-p alone does not determine how many classes it needs: 64 are selected, then 8 times as many, until their mass
 * suffices.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/selection.h"
#include "../kernel/softmax/combine.h"

enum {
    PREFIX_DRAWS = 8, /* with at least this many draws from a row, prefix sums are searched by bisection ... */
    DRAW_ELEMENTS = 2048, /* ... if the draws would search more than the row: half a block each */
    KEPT_ELEMENTS = 8 << 12, /* longest row whose e' are kept, in cache; those of longer rows are computed twice */
    SPLIT_ELEMENTS = 1 << 20, /* shortest row, and fewest draws of a row, that are split however many rows there are */
    PIECE_BLOCKS = 16, /* of a row that is split */
    FIRST_SELECTED = 64, /* number of classes first selected for top-p */
    GROWTH = 8 /* factor by which that number grows if they do not suffice */
};

/* Buffers of a thread.  COPY, WIDE, MASS: of a block, or of the row if it is kept. */
enum { COPY, WIDE, MASS, SUMS, SELECT, BLOCKS, VALUES, KEPT, BUFFERS };

typedef struct sample_call {
    csm_call base;
    csm_view x, indices, uniforms, temperature, top_k, top_p, min_p;
    const csm_sample_options *options;
    size_t draws, rows;
    int is_direct; /* x is contiguous and has no mask */
    int is_split; /* the threads share each row, instead of the rows */
    csm_scales *scales; /* one for each thread, for the temperature of its row */
    csm_scratch scratch;
} sample_call;

/* The state of a row while it is drawn from. */
typedef struct sample_row {
    sample_call *call;
    size_t index;
    int thread; /* whose buffers hold what all threads of the row share */
    csm_strided from, mask;
    const char *whole; /* the logits (or the selected ones) as contiguous storage; NULL: blocks are gathered */
    size_t count; /* and their number */
    const csm_scales *scales;
    int is_transformed; /* beyond exp's range reduction */
    double max; /* before any transformation */
    csm_block *blocks;
    char *mass; /* the e' of all logits, or NULL */
    double n, max_mass; /* n and e' of the maximum */
    double min_p, top_p;
    size_t top_k;
    int64_t *classes; /* of the selected logits; NULL: 0, 1, ... */
    double *sums; /* prefix sums of the masses of each block, or NULL */
    double total; /* mass of all of them */
    double limit, sum; /* top-p: the mass wanted, and that of the `kept` first ones */
    size_t kept;
    char *copy; /* where the row is being copied to */
} sample_row;

static char *buffer(sample_call *call, int thread, int which, size_t size) {
    return csm_scratch_get(&call->scratch, thread, which, size);
}

static double number_at(const sample_call *call, const csm_view *v, size_t row) {
    double value;
    memcpy(&value, csm_row_data(&call->base, v, row), sizeof value);
    return value;
}

/* Calls body on pieces of [0, units): on all threads if the row is split, else on the thread of the row. */
static csm_status for_each(sample_row *row, size_t units, size_t piece, csm_body body) {
    sample_call *call = row->call;
    if (!call->is_split) return body(row, 0, units, row->thread);
    return csm_parallel(units, piece, call->base.threads, body, row, &call->base.interrupt);
}
static csm_status for_each_block(sample_row *row, csm_body body) {
    return for_each(row, csm_block_count(row->count), PIECE_BLOCKS, body);
}
/* The same, one block after the other. */
static csm_status for_each_block_in_order(sample_row *row, csm_body body) {
    sample_call *call = row->call;
    const size_t blocks = csm_block_count(row->count);
    if (!call->is_split) return body(row, 0, blocks, row->thread);
    return csm_parallel(blocks, PIECE_BLOCKS, 1, body, row, &call->base.interrupt);
}

/* Copies k logits from `begin` on. */
static void gather_block(const sample_row *row, size_t begin, size_t k, char *to) {
    const csm_call *c = &row->call->base;
    csm_strided from = row->from, mask = row->mask;
    from.data += (ptrdiff_t)begin * from.axis;
    if (mask.data) mask.data += (ptrdiff_t)begin * mask.axis;
    csm_gather(to, 0, from, 1, k, c->itemsize, &mask, &c->absent);
}
static csm_status copy_body(void *context, size_t begin, size_t end, int thread) {
    const sample_row *row = context;
    (void)thread;
    for (size_t b = begin; b < end; b++)
        gather_block(row, b * CSM_BLOCK, csm_block_length(row->count, b * CSM_BLOCK),
                     row->copy + b * CSM_BLOCK * row->call->base.itemsize);
    return CSM_OK;
}
static csm_status copy_row(sample_row *row) {
    row->copy = buffer(row->call, row->thread, COPY, row->count * row->call->base.itemsize);
    if (!row->copy) return CSM_NO_MEMORY;
    row->whole = row->copy;
    return for_each_block(row, copy_body);
}

/* The logits of a block as contiguous storage, or transformed in the compute type; NULL: no memory. */
static const char *fetch_block(const sample_row *row, size_t begin, size_t k, int thread) {
    sample_call *call = row->call;
    const csm_call *c = &call->base;
    const char *x = row->whole;
    if (x) {
        x += begin * c->itemsize;
    } else {
        char *copy = buffer(call, thread, COPY, CSM_BLOCK * c->itemsize);
        if (!copy) return NULL;
        gather_block(row, begin, k, copy);
        x = copy;
    }
    if (!row->is_transformed) return x;
    char *wide = buffer(call, thread, WIDE, CSM_BLOCK * c->wide_size);
    if (!wide) return NULL;
    c->table->widen[c->dtype](x, wide, k);
    csm_transform(row->scales, csm_is_single(c), wide, k, row->max);
    return wide;
}
static const csm_temperature *temperature_of(const sample_row *row) {
    return row->is_transformed ? &row->scales->transformed : &row->scales->ordinary;
}
/* Computes the sums of a block, and its e' if `mass` is not NULL. */
static csm_status sum_block(const sample_row *row, size_t b, char *mass, csm_block *block, int thread) {
    const csm_call *c = &row->call->base;
    const size_t begin = b * CSM_BLOCK, k = csm_block_length(row->count, begin);
    const char *x = fetch_block(row, begin, k, thread);
    if (!x) return CSM_NO_MEMORY;
    c->table->kernels[CSM_OP_softmax][row->is_transformed ? c->wide_dtype : c->dtype].pass1(x, NULL, mass, k,
                                                                                            temperature_of(row), block);
    return CSM_OK;
}
static csm_status sum_body(void *context, size_t begin, size_t end, int thread) {
    const sample_row *row = context;
    csm_status status = CSM_OK;
    for (size_t b = begin; b < end && status == CSM_OK; b++)
        status = sum_block(row, b, row->mass ? row->mass + b * CSM_BLOCK * row->call->base.wide_size : NULL,
                           &row->blocks[b], thread);
    return status;
}

/* e' of one number of the compute type, and its n. */
static double mass_of(const sample_row *row, csm_wide x, double *n) {
    const csm_call *c = &row->call->base;
    csm_wide e;
    csm_block block;
    c->table->kernels[CSM_OP_softmax][c->wide_dtype].pass1(&x, NULL, &e, 1, temperature_of(row), &block);
    *n = block.n;
    return csm_from_wide(c, e);
}
/* Sets what depends on the largest logit.  A row whose maximum is not finite has no mass. */
static csm_status set_max(sample_row *row, double max) {
    const csm_call *c = &row->call->base;
    csm_wide highest = csm_to_wide(c, max);
    row->max = max;
    if (!(max > -CSM_INF && max < CSM_INF)) return CSM_NO_MASS;
    row->is_transformed = !csm_fits_range(row->scales, max);
    if (row->is_transformed) csm_transform(row->scales, csm_is_single(c), &highest, 1, max);
    row->max_mass = mass_of(row, highest, &row->n);
    return CSM_OK;
}

/* Loops over masses, for each compute type REAL. */
#define LOOPS(REAL)                                                                                       \
    /* Multiplies masses by a power of two; returns whether one of them is left. */                       \
    static int scale_##REAL(REAL *mass, size_t k, double scale) {                                         \
        REAL largest = 0;                                                                                 \
        for (size_t i = 0; i < k; i++) {                                                                  \
            mass[i] = (REAL)((double)mass[i] * scale);                                                    \
            largest = mass[i] > largest ? mass[i] : largest;                                              \
        }                                                                                                 \
        return largest > 0;                                                                               \
    }                                                                                                     \
    /* Sets masses below the threshold to 0, and returns the sum of the others. */                        \
    static double filter_##REAL(REAL *mass, size_t k, double threshold) {                                 \
        double sum = 0;                                                                                   \
        for (size_t i = 0; i < k; i++) {                                                                  \
            mass[i] = (double)mass[i] >= threshold ? mass[i] : 0;                                         \
            sum += (double)mass[i];                                                                       \
        }                                                                                                 \
        return sum;                                                                                       \
    }                                                                                                     \
    /* Adds up masses in order, and stores each sum where `sums` is not NULL. */                          \
    static double add_##REAL(const REAL *mass, size_t k, double sum, double *sums) {                      \
        for (size_t i = 0; i < k; i++) {                                                                  \
            sum += (double)mass[i];                                                                       \
            if (sums) sums[i] = sum;                                                                      \
        }                                                                                                 \
        return sum;                                                                                       \
    }                                                                                                     \
    /* Adds up masses in order while the sum is below the limit; *count: their number. */                 \
    static double add_until_##REAL(const REAL *mass, size_t k, double sum, double limit, size_t *count) { \
        size_t i = 0;                                                                                     \
        while (i < k && sum < limit) sum += (double)mass[i++];                                            \
        *count = i;                                                                                       \
        return sum;                                                                                       \
    }                                                                                                     \
    /* The first i with sum_{l <= i} mass_l > target, else the last that adds to the sum. */              \
    static size_t search_##REAL(const REAL *mass, size_t k, double target) {                              \
        double sum = 0;                                                                                   \
        size_t last = 0;                                                                                  \
        for (size_t i = 0; i < k; i++) {                                                                  \
            const double next = sum + (double)mass[i];                                                    \
            last = next > sum ? i : last;                                                                 \
            sum = next;                                                                                   \
            if (sum > target) break;                                                                      \
        }                                                                                                 \
        return last;                                                                                      \
    }
LOOPS(float)
LOOPS(double)
#define BY_TYPE(row, function, mass, ...)                                                       \
    (csm_is_single(&(row)->call->base) ? function##_float((float *)(void *)(mass), __VA_ARGS__) \
                                       : function##_double((double *)(void *)(mass), __VA_ARGS__))

/* Computes the sums of all blocks (hi + lo, times 2^n of the block) and what depends on the maximum. */
static csm_status sum_row(sample_row *row) {
    csm_status status = for_each_block(row, sum_body);
    double max = -CSM_INF;
    if (status != CSM_OK) return status;
    for (size_t b = 0; b < csm_block_count(row->count); b++) max = row->blocks[b].max > max ? row->blocks[b].max : max;
    status = set_max(row, max);
    if (status == CSM_OK && row->is_transformed) status = for_each_block(row, sum_body);
    for (size_t b = 0; b < csm_block_count(row->count) && status == CSM_OK; b++)
        if (row->blocks[b].hi != row->blocks[b].hi) status = CSM_NO_MASS; /* NaN */
    return status;
}
/* Scales the sums of the blocks, and the e' that are kept, to the row's n.  A sum becomes 0 where every mass of its
 * block is too small for the compute type. */
static csm_status scale_body(void *context, size_t begin, size_t end, int thread) {
    const sample_row *row = context;
    const csm_call *c = &row->call->base;
    (void)thread;
    for (size_t b = begin; b < end; b++) {
        csm_block *block = &row->blocks[b];
        const double scale = csm_pow2(block->n - row->n);
        block->hi = (block->hi + block->lo) * scale;
        if (scale == 1) continue;
        int is_positive = 1;
        double n;
        if (row->mass)
            is_positive = BY_TYPE(row, scale, row->mass + b * CSM_BLOCK * c->wide_size,
                                  csm_block_length(row->count, b * CSM_BLOCK), scale);
        else if (scale < 0x1p-64) /* else the block's largest e' stays far from 0 */
            is_positive = csm_from_wide(c, csm_to_wide(c, mass_of(row, csm_to_wide(c, block->max), &n) * scale)) > 0;
        if (!is_positive) block->hi = 0;
    }
    return CSM_OK;
}

/* Sets masses below min_p times the largest to 0, and returns the sum of the others. */
static double apply_min_p(const sample_row *row, char *mass, size_t k) {
    return BY_TYPE(row, filter, mass, k, row->min_p * row->max_mass);
}
/* The masses of a block, after min-p: those that are kept, or new ones in the thread's buffer; NULL: no memory.
 * *sum: theirs, if they are new and min-p is used. */
static char *block_masses(const sample_row *row, size_t b, int thread, double *sum) {
    sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t k = csm_block_length(row->count, b * CSM_BLOCK);
    csm_block block;
    if (row->mass) return row->mass + b * CSM_BLOCK * c->wide_size;
    char *mass = buffer(call, thread, MASS, CSM_BLOCK * c->wide_size);
    if (!mass || sum_block(row, b, mass, &block, thread) != CSM_OK) return NULL;
    const double scale = csm_pow2(block.n - row->n);
    if (scale != 1) BY_TYPE(row, scale, mass, k, scale);
    if (row->min_p > 0) *sum = apply_min_p(row, mass, k);
    return mass;
}
static csm_status min_p_body(void *context, size_t begin, size_t end, int thread) {
    sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        double sum = 0;
        char *mass = block_masses(row, b, thread, &sum);
        if (!mass) return CSM_NO_MEMORY;
        row->blocks[b].hi = row->mass ? apply_min_p(row, mass, csm_block_length(row->count, b * CSM_BLOCK)) : sum;
    }
    return CSM_OK;
}

/* The same on prefix sums.  The bisection has no branches to predict. */
static size_t search_sums(const double *sums, size_t k, double target) {
    size_t low = 0; /* all sums before it are at most the target */
    for (size_t left = k; left > 1; left -= left / 2) low += sums[low + left / 2 - 1] > target ? 0 : left / 2;
    low += !(sums[low] > target);
    if (low < k) return low;
    for (low = k - 1; low > 0 && !(sums[low] > sums[low - 1]);) low--;
    return low;
}

/* Adds a block's mass to the sum of those before it, and returns the sum, rounded. */
static double add_block(csm_exact *sum, double mass) {
    double total, rest;
    csm_exact_add(sum, mass, 0, 1);
    csm_exact_pair(sum, 0, &total, &rest);
    return total;
}
/* The first block whose running sum, in `lo`, is greater than the target, else the last with a mass. */
static size_t search_blocks(const csm_block *blocks, size_t count, double target) {
    size_t low = 0;
    for (size_t left = count; left > 1; left -= left / 2) low += blocks[low + left / 2 - 1].lo > target ? 0 : left / 2;
    low += !(blocks[low].lo > target);
    if (low < count) return low;
    for (low = count - 1; low > 0 && !(blocks[low].hi > 0);) low--;
    return low;
}

static csm_status prefix_body(void *context, size_t begin, size_t end, int thread) {
    const sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        double unused;
        char *mass = block_masses(row, b, thread, &unused);
        if (!mass) return CSM_NO_MEMORY;
        BY_TYPE(row, add, mass, csm_block_length(row->count, b * CSM_BLOCK), 0, row->sums + b * CSM_BLOCK);
    }
    return CSM_OK;
}

static csm_status draw_body(void *context, size_t begin, size_t end, int thread) {
    const sample_row *row = context;
    const sample_call *call = row->call;
    const csm_call *c = &call->base;
    const csm_block *blocks = row->blocks;
    const size_t n_blocks = csm_block_count(row->count);
    const double total = row->total;
    const char *uniform = csm_row_data(c, &call->uniforms, row->index);
    char *to = (char *)call->indices.data + csm_offset(&c->shape, call->indices.strides, row->index), *mass = NULL;
    size_t computed = n_blocks; /* the block whose masses these are */
    for (size_t draw = begin; draw < end; draw++) {
        double u;
        memcpy(&u, uniform + (ptrdiff_t)draw * call->uniforms.axis_stride, sizeof u);
        const double target = u * total;
        const size_t block = search_blocks(blocks, n_blocks, target);
        const double before = !(total > target) ? total - blocks[block].hi : block > 0 ? blocks[block - 1].lo : 0;
        const size_t first = block * CSM_BLOCK, k = csm_block_length(row->count, first);
        size_t at = first;
        if (row->sums) {
            at += search_sums(row->sums + first, k, target - before);
        } else {
            double unused;
            if (block != computed) mass = block_masses(row, block, thread, &unused);
            if (!mass) return CSM_NO_MEMORY;
            computed = block;
            at += BY_TYPE(row, search, mass, k, target - before);
        }
        const int64_t index = row->classes ? row->classes[at] : (int64_t)at;
        memcpy(to + (ptrdiff_t)draw * call->indices.axis_stride, &index, sizeof index);
    }
    return CSM_OK;
}

/* Draws from the masses, given the sums of their blocks in `hi`. */
static csm_status draw_from(sample_row *row) {
    sample_call *call = row->call;
    csm_block *blocks = row->blocks;
    const size_t n_blocks = csm_block_count(row->count);
    csm_exact sum_of_blocks;
    csm_exact_zero(&sum_of_blocks);
    if (n_blocks == 1) blocks->lo = blocks->hi;
    else
        for (size_t b = 0; b < n_blocks; b++) blocks[b].lo = add_block(&sum_of_blocks, blocks[b].hi);
    row->total = blocks[n_blocks - 1].lo;
    row->sums = NULL;
    if (call->draws >= PREFIX_DRAWS && call->draws >= row->count / DRAW_ELEMENTS) {
        row->sums = (double *)(void *)buffer(call, row->thread, SUMS, row->count * sizeof(double));
        if (!row->sums) return CSM_NO_MEMORY;
        csm_status status = for_each_block(row, prefix_body);
        if (status != CSM_OK) return status;
    }
    return for_each(row, call->draws, row->sums ? CSM_BLOCK / 4 : 1, draw_body);
}

static csm_status draw_all(sample_row *row) {
    const csm_call *c = &row->call->base;
    if (row->count <= KEPT_ELEMENTS) {
        row->mass = buffer(row->call, row->thread, MASS, row->count * c->wide_size);
        if (!row->mass) return CSM_NO_MEMORY;
    }
    csm_status status = sum_row(row);
    if (status == CSM_OK) status = for_each_block(row, scale_body);
    if (status == CSM_OK && row->min_p > 0) status = for_each_block(row, min_p_body);
    return status == CSM_OK ? draw_from(row) : status;
}

/* The mass of a whole row, of whose blocks the sums are known. */
static double row_mass(const sample_row *row) {
    csm_exact sum;
    double total, rest;
    csm_exact_zero(&sum);
    for (size_t b = 0; b < csm_block_count(row->count); b++) csm_exact_add_block(&sum, &row->blocks[b]);
    csm_exact_pair(&sum, (int64_t)row->n, &total, &rest);
    return total;
}

/* Finds the k largest logits: their classes, and themselves in `values`. */
static csm_status select_best(sample_row *row, const char *whole, size_t k, char *values) {
    sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, size = c->itemsize;
    csm_poll poll = csm_poll_of(&call->base.interrupt, row->thread);
    if (call->is_split) {
        int64_t *classes = (int64_t *)(void *)buffer(call, row->thread, SELECT, k * sizeof *classes);
        if (!classes) return CSM_NO_MEMORY;
        const csm_shape shape = {.n = n};
        const csm_view x = {(void *)(uintptr_t)whole, (ptrdiff_t)size, {0}}, to = {values, (ptrdiff_t)size, {0}};
        const csm_view indices = {classes, sizeof *classes, {0}};
        csm_topk_options o = csm_default_topk_options();
        o.threads = c->threads;
        o.interrupt = csm_stops_inner;
        o.interrupt_context = &poll;
        row->classes = classes;
        return csm_run_topk(c->dtype, c->table, &shape, &x, k, &to, &indices, &o);
    }
    char *memory = buffer(call, row->thread, SELECT, csm_select_size(n, k, c->wide_size));
    if (!memory) return CSM_NO_MEMORY;
    csm_select chosen = csm_select_at(memory, n, k, c->wide_size, poll);
    c->table->select[c->dtype](whole, n, k, 0, 1, &chosen);
    if (chosen.is_stopped) return CSM_INTERRUPTED;
    for (size_t i = 0; i < k; i++) memcpy(values + i * size, whole + (size_t)chosen.index[i] * size, size);
    row->classes = chosen.index;
    return CSM_OK;
}

/* Adds up the masses in order. */
static csm_status total_body(void *context, size_t begin, size_t end, int thread) {
    sample_row *row = context;
    const size_t first = begin * CSM_BLOCK, last = end * CSM_BLOCK < row->count ? end * CSM_BLOCK : row->count;
    (void)thread;
    row->total = BY_TYPE(row, add, row->mass + first * row->call->base.wide_size, last - first, row->total, NULL);
    return CSM_OK;
}
/* The same until the limit. */
static csm_status nucleus_body(void *context, size_t begin, size_t end, int thread) {
    sample_row *row = context;
    const size_t first = begin * CSM_BLOCK, last = end * CSM_BLOCK < row->count ? end * CSM_BLOCK : row->count;
    size_t added;
    (void)thread;
    row->sum = BY_TYPE(row, add_until, row->mass + first * row->call->base.wide_size, last - first, row->sum,
                       row->limit, &added);
    row->kept += added;
    return CSM_OK;
}

/* Copies one number of 2, 4 or 8 bytes: sizes that the compiler knows, or memcpy is a call. */
static void copy_number(char *to, const char *from, size_t size) {
    if (size == 2) memcpy(to, from, 2);
    else if (size == 4) memcpy(to, from, 4);
    else memcpy(to, from, 8);
}
/* Puts the classes that are kept, and their logits in `values`, into the order of the indices: one bit for each class
 * of the row, set for those that are kept, is read from the first to the last. */
static csm_status order_kept(sample_row *row, const char *whole, char *values) {
    sample_call *call = row->call;
    const size_t words = (call->base.shape.n + 63) / 64, size = call->base.itemsize;
    csm_poll poll = csm_poll_of(&call->base.interrupt, row->thread);
    if (row->count == 1) return CSM_OK;
    uint64_t *bits = (uint64_t *)(void *)buffer(call, row->thread, KEPT, words * sizeof *bits);
    if (!bits) return CSM_NO_MEMORY;
    memset(bits, 0, words * sizeof *bits);
    for (size_t i = 0; i < row->count; i++) {
        bits[row->classes[i] / 64] |= (uint64_t)1 << row->classes[i] % 64;
        if (csm_poll_at(&poll, i)) return CSM_INTERRUPTED;
    }
    for (size_t word = 0, i = 0; word < words; word++) {
        for (uint64_t left = bits[word]; left; left &= left - 1) {
            const size_t at = word * 64 + CSM_LOWEST_BIT(left);
            row->classes[i] = (int64_t)at;
            copy_number(values + i++ * size, whole + at * size, size);
        }
        if (csm_poll_at(&poll, word)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

/* The masses of the selected logits, in their order. */
static csm_status selected_masses(sample_row *row) {
    csm_status status = for_each_block(row, sum_body);
    return status == CSM_OK ? for_each_block(row, scale_body) : status;
}

static csm_status draw_selected(sample_row *row) {
    sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t n = row->count, top_k = row->top_k;
    const double top_p = row->top_p;
    csm_status status = CSM_OK;
    double all = 0;
    if (top_k == n) {
        status = sum_row(row);
        if (status != CSM_OK) return status;
        all = row_mass(row);
    }
    const char *whole = row->whole;
    size_t k = top_k < n ? top_k : n < FIRST_SELECTED ? n : FIRST_SELECTED;
    for (;;) {
        char *values = buffer(call, row->thread, VALUES, k * c->itemsize);
        row->mass = buffer(call, row->thread, MASS, k * c->wide_size);
        if (!values || !row->mass) return CSM_NO_MEMORY;
        status = select_best(row, whole, k, values);
        if (status == CSM_OK && top_k < n) status = set_max(row, csm_element(c, values, 0)); /* NaN comes first */
        row->whole = values;
        row->count = k;
        if (status == CSM_OK && top_p == 1) status = order_kept(row, whole, values);
        if (status == CSM_OK) status = selected_masses(row);
        if (status != CSM_OK) return status;
        row->total = all;
        if (top_k < n && top_p < 1) status = for_each_block_in_order(row, total_body);
        row->limit = top_p * row->total;
        row->sum = 0;
        row->kept = top_p < 1 ? 0 : k;
        if (status == CSM_OK && row->kept == 0) status = for_each_block_in_order(row, nucleus_body);
        if (status != CSM_OK) return status;
        if (row->kept < k || top_k < n || k == n || row->sum >= row->limit) {
            row->count = row->kept;
            if (top_p < 1) status = order_kept(row, whole, values);
            if (top_p < 1 && status == CSM_OK) status = selected_masses(row);
            if (status == CSM_OK) status = for_each_block(row, min_p_body);
            return status == CSM_OK ? draw_from(row) : status;
        }
        k = k > n / GROWTH ? n : k * GROWTH;
    }
}

/* Reads and checks the parameters of a row. */
static csm_status read_parameters(const sample_call *call, sample_row *row, double *temperature) {
    const csm_sample_options *o = call->options;
    const size_t at = row->index, n = call->base.shape.n;
    *temperature = o->temperature ? number_at(call, &call->temperature, at) : 1;
    row->top_p = o->top_p ? number_at(call, &call->top_p, at) : 1;
    row->min_p = o->min_p ? number_at(call, &call->min_p, at) : 0;
    row->top_k = n;
    if (o->top_k) {
        int64_t k;
        memcpy(&k, csm_row_data(&call->base, &call->top_k, at), sizeof k);
        if (k < -1) return CSM_BAD_OPTION;
        if (k > 0 && (uint64_t)k < n) row->top_k = (size_t)k;
    }
    if (!(*temperature >= 0)) return CSM_BAD_TEMPERATURE;
    if (!(row->top_p > 0 && row->top_p <= 1) || !(row->min_p >= 0 && row->min_p <= 1)) return CSM_BAD_OPTION;
    if (*temperature == 0) row->top_k = 1;
    return CSM_OK;
}

static csm_status draw_row(sample_call *call, size_t at, int thread) {
    const csm_call *c = &call->base;
    csm_scales *scales = &call->scales[thread];
    const size_t n = c->shape.n;
    sample_row row = {.call = call, .index = at, .thread = thread, .count = n, .scales = scales};
    double temperature;
    csm_status status = read_parameters(call, &row, &temperature);
    if (status != CSM_OK) return status;
    if (!(scales->temperature == temperature)) csm_set_scales(scales, temperature, csm_is_single(c));
    row.blocks = (csm_block *)(void *)buffer(call, thread, BLOCKS, csm_block_count(n) * sizeof(csm_block));
    if (!row.blocks) return CSM_NO_MEMORY;
    row.from = csm_row_of(c, &call->x, at);
    row.mask = csm_mask_of(c, at);
    const int selects = row.top_k < n || row.top_p < 1;
    if (call->is_direct) row.whole = row.from.data;
    else if (selects || n <= KEPT_ELEMENTS) status = copy_row(&row);
    if (status != CSM_OK) return status;
    return selects ? draw_selected(&row) : draw_all(&row);
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    sample_call *call = context;
    for (size_t row = begin; row < end; row++) {
        csm_status status = draw_row(call, row, thread);
        if (status != CSM_OK) return status;
        if (csm_stops(&call->base.interrupt, thread, call->base.shape.n + call->draws)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
static csm_status draw_split_rows(sample_call *call) {
    csm_status status = CSM_OK;
    call->base.interrupt.last = call->base.interrupt.check ? csm_now() : 0; /* many short regions */
    for (size_t row = 0; row < call->rows && status == CSM_OK; row++) status = draw_row(call, row, 0);
    return status;
}

/* Decides whether the threads share each row: rows that are fewer than the threads they can use, and long ones, within
 * which an interrupt is looked for. */
static void choose_threads(sample_call *call, int threads) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n, longest = n > call->draws ? n : call->draws;
    const int of_row = csm_threads_for((double)longest, longest / CSM_BLOCK + 1, threads);
    call->is_split = longest >= SPLIT_ELEMENTS || (size_t)of_row > call->rows;
    c->threads = call->is_split
                     ? of_row
                     : csm_threads_for((double)call->rows * ((double)n + (double)call->draws), call->rows, threads);
}

static csm_status run_sample(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                             size_t draws, const csm_view *uniform, const csm_view *indices,
                             const csm_sample_options *o, csm_fp_environment *caller) {
    sample_call call;
    csm_call *c = &call.base;
    memset(&call, 0, sizeof call);
    csm_set_dtype(c, dtype, table);
    csm_status status = csm_lay_out(
        c, shape, (const csm_view *[]){x, indices, uniform, o->where, o->temperature, o->top_k, o->top_p, o->min_p},
        (csm_view *[]){&call.x, &call.indices, &call.uniforms, o->where ? &c->where : NULL,
                       o->temperature ? &call.temperature : NULL, o->top_k ? &call.top_k : NULL,
                       o->top_p ? &call.top_p : NULL, o->min_p ? &call.min_p : NULL},
        8, &call.rows);
    if (status != CSM_OK || call.rows == 0 || draws == 0) return status;
    if (shape->n == 0) return CSM_NO_MASS;
    c->has_where = o->where != NULL;
    call.options = o;
    call.draws = draws;
    call.is_direct = !c->has_where && csm_is_contiguous(&c->shape, &call.x, c->itemsize, 1);
    csm_put(c, &c->absent, -CSM_INF);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    choose_threads(&call, o->threads < 1 ? 1 : o->threads);
    csm_buffer single[BUFFERS];
    status = csm_scratch_begin(&call.scratch, c->threads, BUFFERS, single);
    if (status != CSM_OK) return status;
    call.scales = csm_allocate((size_t)c->threads * sizeof *call.scales);
    for (int i = 0; call.scales && i < c->threads; i++) csm_set_scales(&call.scales[i], 1, csm_is_single(c));
    if (!call.scales) status = CSM_NO_MEMORY;
    else if (call.is_split) status = draw_split_rows(&call);
    else
        status = csm_parallel(call.rows, CSM_PIECE_ELEMENTS / 4 / (shape->n + 1) + 1, c->threads, rows_body, &call,
                              &c->interrupt);
    csm_release(call.scales);
    csm_scratch_end(&call.scratch);
    *caller = c->interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_sample(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                          size_t draws, const csm_view *uniform, const csm_view *indices,
                          const csm_sample_options *options) {
    const csm_sample_options defaults = csm_default_sample_options();
    csm_fp_environment saved = csm_fp_enter();
    csm_status status =
        run_sample(dtype, table, shape, x, draws, uniform, indices, options ? options : &defaults, &saved);
    csm_fp_leave(saved);
    return status;
}

#define SAMPLE(suffix, storage, compute)                                                                             \
    csm_status csm_sample_##suffix(const csm_shape *shape, const csm_view *x, size_t draws, const csm_view *uniform, \
                                   const csm_view *indices, const csm_sample_options *o) {                           \
        return csm_run_sample(CSM_DTYPE_##suffix, csm_current_table(), shape, x, draws, uniform, indices, o);        \
    }
CSM_DTYPES(SAMPLE)
