/* The C core without Python: arguments, allocation failures, scratch, interrupts, threads, the floating-point
 * environment; and the tests of the families, each in a separate file.
 *
 *     test_core [--every K]      K > 1: every K-th case only (emulators, sanitizers)
 *
 * Inputs are computed in integer arithmetic, so that the line `hash` is the same on every machine.  Link with
 * -Wl,--wrap=malloc,--wrap=calloc,--wrap=posix_memalign,--wrap=free.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "problem.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* Each allocation in turn fails: the call returns CSM_NO_MEMORY and leaks nothing, and the next call is correct. */
static void test_no_memory(void) {
    static const struct {
        size_t r1, r2, n;
        int layout, masked, kind;
    } cases[] = {{1, 3, 10, STRIDED, 0, NORMAL},     {1, 4, 100, C, 1, NORMAL},   {1, 40, 100, TILE0, 0, NORMAL},
                 {1, 3, 10, C, 0, BEYOND},           {1, 2, 5000, C, 0, NORMAL},  {1, 80, 1000, C, 0, BEYOND},
                 {1, 2, 50000, STRIDED, 0, NORMAL},  {1, 2, 50000, C, 0, NORMAL}, {1, 64, 1000, TILE0, 0, BEYOND},
                 {1, 1, (1 << 20) + 5, C, 0, NORMAL}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int threads = 1; threads <= 4; threads += 3) {
                int dtype = cases[c].n > 100000 ? 0 : (op + (int)c) % CSM_DTYPE_COUNT;
                problem p = make(op, dtype, cases[c].kind, cases[c].r1, cases[c].r2, cases[c].n, 1, cases[c].masked);
                answer(&p);
                place from = lay(cases[c].layout, p.r1, p.r2, p.n, p.item);
                place where = lay(cases[c].layout, p.r1, p.r2, p.n, 1);
                place to = lay(cases[c].layout, p.r1, p.r2, p.out, p.item);
                char *a = need(from.bytes), *b = need(from.bytes), *m = need(where.bytes), *y = need(to.bytes);
                spread(&p, a, from, p.a, p.n, p.item);
                spread(&p, b, from, p.b, p.n, p.item);
                spread(&p, m, where, p.mask, p.n, 1);
                csm_shape shape = shape_of(&p);
                csm_view va = view_of(a, from), vb = view_of(b, from), vy = view_of(y, to), vm = view_of(m, where);
                csm_options o = options_of(&p, &vm, threads);
                arrangement l = {cases[c].layout, cases[c].layout, 0};
                use(isas[isa_count - 1]);
                for (long n = 1; n < 20; n++) {
                    arm(n);
                    csm_status status = call(op, dtype, &shape, &va, &vb, &vy, &o);
                    disarm();
                    long refusals = failed_requests, left = live;
                    check(left == 0, "%s_%s case %zu: %ld leaked when allocation %ld fails", ops[op], dtypes[dtype], c,
                          left, n);
                    check(status == (refusals ? CSM_NO_MEMORY : CSM_OK),
                          "%s_%s case %zu: status %d when allocation %ld fails", ops[op], dtypes[dtype], c, status, n);
                    if (!refusals) break;
                    if (n == 1) compare(&p, l, isas[isa_count - 1], threads, 0);
                }
                free(a), free(b), free(m), free(y);
                drop(&p);
            }
}

/* The caller's scratch: never exceeded; sufficient if it has the promised size; rejected if it is smaller. */
static void test_scratch(void) {
    static const struct {
        size_t r2, n;
        int layout, masked, kind;
    } cases[] = {{1, 1, C, 0, NORMAL},          {3, 10, STRIDED, 0, BEYOND},   {40, 100, C, 1, SPECIAL},
                 {40, 100, TILE0, 0, BEYOND},   {2, 4096, STRIDED, 0, BEYOND}, {9, 4096, TILE0, 0, NORMAL},
                 {9, 4096, TILE0, 1, BEYOND},   {3, 4097, C, 0, WIDE},         {3, 70000, STRIDED, 1, NORMAL},
                 {2, 140000, STRIDED, 0, WIDE}, {80, 1000, C, 0, BEYOND},      {1, 300000, C, 0, BEYOND}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
                for (int threads = 1; threads <= 3; threads += 2) {
                    problem p = make(op, dtype, cases[c].kind, 1, cases[c].r2, cases[c].n, 1, cases[c].masked);
                    answer(&p);
                    place from = lay(cases[c].layout, 1, p.r2, p.n, p.item),
                          where = lay(cases[c].layout, 1, p.r2, p.n, 1);
                    place to = lay(cases[c].layout, 1, p.r2, p.out, p.item);
                    char *a = need(from.bytes), *b = need(from.bytes), *m = need(where.bytes), *y = need(to.bytes);
                    char *expected = need(to.bytes), text[128];
                    spread(&p, a, from, p.a, p.n, p.item);
                    spread(&p, b, from, p.b, p.n, p.item);
                    spread(&p, m, where, p.mask, p.n, 1);
                    memset(y, 0x5a, to.bytes);
                    memset(expected, 0x5a, to.bytes);
                    csm_shape shape = shape_of(&p);
                    csm_view va = view_of(a, from), vb = view_of(b, from), vy = view_of(y, to), vm = view_of(m, where);
                    csm_options o = options_of(&p, &vm, threads);
                    size_t size = csm_scratch_size(&shape, threads);
                    fenced f = fence(size + 64);
                    o.scratch = f.end - size;
                    o.scratch_size = size - 1;
                    describe(&p, text, sizeof text);
                    use(isas[isa_count - 1]);
                    check(size % 64 == 0, "%s: scratch of %zu bytes", text, size);
                    check(call(op, dtype, &shape, &va, &vb, &vy, &o) == CSM_SMALL_SCRATCH &&
                              !memcmp(y, expected, to.bytes),
                          "%s: scratch of %zu bytes accepted instead of %zu", text, size - 1, size);
                    memset(f.begin, 0x77, (size_t)(f.end - f.begin) - size);
                    o.scratch_size = size;
                    spread(&p, expected, to, p.want, p.out, p.item);
                    arm(-1);
                    csm_status status = call(op, dtype, &shape, &va, &vb, &vy, &o);
                    disarm();
                    check(status == CSM_OK && !memcmp(y, expected, to.bytes), "%s in the caller's scratch: %d", text,
                          status);
                    check(asked == 0, "%s allocates %ld times in spite of the caller's scratch", text, (long)asked);
                    int clean = 1;
                    for (char *q = f.begin; q < f.end - size; q++) clean &= *q == 0x77;
                    check(clean, "%s writes before the caller's scratch", text);
                    unfence(f);
                    free(a), free(b), free(m), free(y), free(expected);
                    drop(&p);
                }
}

#if defined(__x86_64__)
static unsigned fp_control(void) { return _mm_getcsr() & ~0x3fu; } /* without the sticky exception flags */
static void fp_set(unsigned c) { _mm_setcsr(c); }
enum { FP_FLUSH = 0x8040 | 0x6000 }; /* flush to zero, denormals are zero, round toward zero */
#elif defined(__aarch64__)
static unsigned fp_control(void) {
    uint64_t c;
    __asm__ volatile("mrs %0, fpcr" : "=r"(c));
    return (unsigned)c;
}
static void fp_set(unsigned c) { __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)c)); }
enum { FP_FLUSH = 1 << 24 | 3 << 22 };
#else
static unsigned fp_control(void) { return 0; }
static void fp_set(unsigned c) { (void)c; }
enum { FP_FLUSH = 0 };
#endif

/* The caller's flush-to-zero and rounding mode have no effect and are preserved. */
static void test_environment(void) {
    for (int op = 0; op < CSM_OP_COUNT; op++)
        for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
            for (int threads = 1; threads <= 2; threads++) {
                problem p = make(op, dtype, WIDE, 1, 60, 1000, 1, 0);
                answer(&p);
                place l = lay(C, 1, p.r2, p.n, p.item), to = lay(C, 1, p.r2, p.out, p.item);
                char *y = need(to.bytes);
                csm_shape shape = shape_of(&p);
                csm_view a = view_of(p.a, l), b = view_of(p.b, l), vy = view_of(y, to);
                csm_options o = options_of(&p, NULL, threads);
                use(isas[isa_count - 1]);
                unsigned before = fp_control();
                fp_set(before | FP_FLUSH);
                unsigned set = fp_control();
                csm_status status = call(op, dtype, &shape, &a, &b, &vy, &o);
                unsigned after = fp_control();
                fp_set(before);
                check(status == CSM_OK && !memcmp(y, p.want, to.bytes), "%s_%s under flush-to-zero", ops[op],
                      dtypes[dtype]);
                check(set == after, "%s_%s changes the control word %x to %x", ops[op], dtypes[dtype], set, after);
                free(y);
                drop(&p);
            }
}

typedef struct visits {
    int count, stop_at;
    unsigned control;
    int same;
} visits;
static int visit(void *context) {
    visits *v = context;
    v->same &= fp_control() == v->control;
    return ++v->count >= v->stop_at;
}
static void test_interrupt(void) {
    const size_t rows = 6000, n = 1000;
    csm_shape shape = {n, 1, {rows}};
    float *x = need(rows * n * 4), *y = need(rows * n * 4);
    memset(y, 0, rows * n * 4);
    seed(7);
    for (size_t i = 0; i < rows * n; i++) x[i] = (float)(next() >> 20) / 64;
    csm_view vx = csm_contiguous(&shape, n, x, 4), vy = csm_contiguous(&shape, n, y, 4);
    use("scalar"); /* slow enough to be interrupted */
    for (int threads = 1; threads <= 2; threads++) {
        csm_options o = CSM_OPTIONS_INIT;
        visits v = {0, 1, fp_control(), 1};
        o.threads = threads;
        o.interrupt = visit;
        o.interrupt_context = &v;
        memset(y, 0, rows * n * 4);
        csm_status status = csm_softmax_f32(&shape, &vx, &vy, &o);
        check(status == CSM_INTERRUPTED && v.count == 1, "interrupt: status %d after %d checks", status, v.count);
        check(v.same, "the callback sees another control word");
        check(y[rows * n - 1] == 0 || threads > 1, "interrupt: the call ran to completion");
        v = (visits){0, 1 << 30, fp_control(), 1};
        status = csm_softmax_f32(&shape, &vx, &vy, &o);
        check(status == CSM_OK && v.count > 0, "no interrupt: status %d after %d checks", status, v.count);
    }
    /* one long row */
    shape = (csm_shape){rows * n, 0, {0}};
    vx = csm_contiguous(&shape, rows * n, x, 4), vy = csm_contiguous(&shape, rows * n, y, 4);
    csm_options o = CSM_OPTIONS_INIT;
    visits v = {0, 1, fp_control(), 1};
    o.interrupt = visit;
    o.interrupt_context = &v;
    csm_status status = csm_softmax_f32(&shape, &vx, &vy, &o);
    check(status == CSM_INTERRUPTED && v.count == 1, "interrupt in a row: status %d after %d checks", status, v.count);
    free(x), free(y);
}

/* Every unit is computed exactly once, for any counts, and threads that finish early compute the share of a late
 * one. */
typedef struct shared_state {
    size_t units, piece;
    /* The first piece of this thread lasts until all others are done.  It waits only if another thread begins at all:
     * no call waits for a worker that has not begun, so the calling thread may do everything alone. */
    int late_thread;
    atomic_int others; /* pieces of other threads */
    atomic_int *times;
    atomic_size_t done;
} shared_state;
static csm_status shared_body(void *context, size_t begin, size_t end, int thread) {
    shared_state *w = context;
    if (begin >= end || end - begin > w->piece || end > w->units) return CSM_BAD_SHAPE;
    for (size_t i = begin; i < end; i++) atomic_fetch_add(&w->times[i], 1);
    size_t done = atomic_fetch_add(&w->done, end - begin) + end - begin;
    if (thread != w->late_thread) {
        atomic_fetch_add(&w->others, 1);
    } else {
        double limit = csm_now() + 0.005; /* other threads take part only if they get a CPU */
        while (atomic_load(&w->others) == 0 && csm_now() < limit) usleep(100);
        if (atomic_load(&w->others) == 0) return CSM_OK;
        limit = csm_now() + 10;
        while ((done = atomic_load(&w->done)) < w->units && csm_now() < limit) usleep(100);
        if (done < w->units) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
static void test_shares(void) {
    enum { MAX_UNITS = 5000 };
    static atomic_int times[MAX_UNITS];
    static const size_t units[] = {2, 3, 7, 16, 64, 65, 127, 1000, 4999}, pieces[] = {1, 5, 64, 100000};
    static const int counts[] = {1, 2, 3, 8, 63, 64, 65, 100};
    for (size_t u = 0; u < sizeof units / sizeof *units; u++)
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++)
            for (size_t t = 0; t < sizeof counts / sizeof *counts; t++)
                for (int late_thread = -1;
                     late_thread < (csm_openmp() && counts[t] <= 3 && counts[t] > 1 ? counts[t] : 0); late_thread++) {
                    for (size_t i = 0; i < units[u]; i++) atomic_store(&times[i], 0);
                    shared_state w = {
                        .units = units[u], .piece = pieces[p], .late_thread = late_thread, .times = times};
                    csm_interrupt none = {0};
                    csm_status status = csm_parallel(units[u], pieces[p], counts[t], shared_body, &w, &none);
                    int once = status == CSM_OK;
                    for (size_t i = 0; i < units[u]; i++) once &= atomic_load(&times[i]) == 1;
                    check(once, "%zu units in pieces of %zu on %d threads, %d late: status %d", units[u], pieces[p],
                          counts[t], late_thread, status);
                    if (!once) return; /* waited too long */
                }
}

/* The maximum ignores NaN and nothing else, also in elements before the first cache line. */
static void test_maximum(void) {
    static const size_t lengths[] = {5, 40, 511, 512, 2048, 4099}, offsets[] = {0, 1, 3, 4, 8};
    _Alignas(64) static char memory[(4099 + 8) * 8];
    for (int i = 0; i < isa_count; i++)
        for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
                for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
                    const size_t n = lengths[l];
                    char *x = memory + offsets[o] * sizes_of[dtype];
                    use(isas[i]);
                    for (size_t nan = 0; nan < 3; nan++)
                        for (size_t max_at = 0; max_at < n; max_at += n < 100 ? 1 : 61) {
                            for (size_t j = 0; j < n; j++) put(dtype, x, j, -100);
                            put(dtype, x, max_at, -3);
                            if (nan != max_at) put(dtype, x, nan, NAN);
                            const double got = csm_current_table()->max[dtype](x, n);
                            check(got == -3,
                                  "maximum of %zu %s, %s, %zu elements past a cache line, NaN at %zu, -3 at %zu: %g", n,
                                  dtypes[dtype], isas[i], offsets[o], nan, max_at, got);
                        }
                }
}

static void test_arguments(void) {
    float x[4] = {1, 2, 3, 4}, y[4] = {-9, -9, -9, -9};
    csm_shape four = {4, 0, {0}};
    csm_view vx = csm_contiguous(&four, 4, x, 4), vy = csm_contiguous(&four, 4, y, 4);
    csm_view zeros = {x, 0, {0}};
    for (int op = 0; op < CSM_OP_COUNT; op++)
        for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++) {
            csm_shape deep = {4, CSM_MAX_NDIM + 1, {1}}, vast = {(size_t)1 << 40, 2, {(size_t)1 << 20, 1 << 10}};
            csm_shape wrap = {4, 2, {(size_t)1 << 32, (size_t)1 << 32}}, wide = {SIZE_MAX, 0, {0}},
                      huge = {SIZE_MAX / 2, 1, {3}};
            const csm_shape *bad[] = {&deep, &vast, &wrap, &wide, &huge};
            for (int i = 0; i < 5; i++)
                check(call(op, dtype, bad[i], &zeros, &zeros, &zeros, NULL) == CSM_BAD_SHAPE, "%s_%s: bad shape %d",
                      ops[op], dtypes[dtype], i);
            const double never[] = {-1, -0x1p-1074, -INFINITY, NAN}, gradient[] = {0, -0.0, INFINITY};
            csm_options o = CSM_OPTIONS_INIT;
            for (int i = 0; i < 4; i++) {
                o.temperature = never[i];
                check(call(op, dtype, &four, &vx, &vx, &vy, &o) == CSM_BAD_TEMPERATURE, "%s: T = %g", ops[op],
                      never[i]);
            }
            for (int i = 0; i < 3 && has_b[op]; i++) {
                o.temperature = gradient[i];
                check(call(op, dtype, &four, &vx, &vx, &vy, &o) == CSM_BAD_TEMPERATURE, "%s: T = %g", ops[op],
                      gradient[i]);
            }
            csm_shape none = {4, 2, {3, 0}}, no_class = {0, 1, {3}};
            check(call(op, dtype, &none, &zeros, &zeros, &zeros, NULL) == CSM_OK, "%s_%s: no rows", ops[op],
                  dtypes[dtype]);
            check(y[0] == -9 && y[1] == -9 && y[2] == -9 && y[3] == -9, "%s_%s: writes after an error", ops[op],
                  dtypes[dtype]);
            if (keeps[op]) {
                check(call(op, dtype, &no_class, &zeros, &zeros, &zeros, NULL) == CSM_OK, "%s_%s: no classes", ops[op],
                      dtypes[dtype]);
            } else {
                double all[4];
                csm_view lse = {all, 0, {(ptrdiff_t)sizes_of[dtype]}};
                check(call(op, dtype, &no_class, &zeros, NULL, &lse, NULL) == CSM_OK, "%s_%s: no classes", ops[op],
                      dtypes[dtype]);
                const double nothing = op == CSM_OP_logsumexp ? -INFINITY : 0;
                for (size_t i = 0; i < 3; i++) check(get(dtype, all, i) == nothing, "%s of an empty row", ops[op]);
            }
        }
    csm_options none = CSM_OPTIONS_INIT;
    none.threads = -3; /* an upper bound, at least 1 */
    check(csm_softmax_f32(&four, &vx, &vy, &none) == CSM_OK && y[3] > 0.6f, "threads = -3");
    const char *before = csm_isa();
    check(csm_select_isa("mmx") == -1 && csm_isa() == before, "an unknown instruction set");
    check(!csm_isa_built("mmx") && !csm_isa_available("mmx"), "an unknown instruction set");
    check(csm_isa_available("scalar") && csm_isa_built("scalar"), "scalar is always available");
    for (int i = 0; i < ALL_ISAS; i++)
        if (!csm_isa_available(all_isas[i])) check(csm_select_isa(all_isas[i]) == -1, "%s selected", all_isas[i]);
    for (int s = CSM_OK; s <= CSM_SMALL_SCRATCH; s++)
        check(strcmp(csm_status_text((csm_status)s), "unknown status") != 0, "status %d has no text", s);
    check(strcmp(csm_status_text((csm_status)99), "unknown status") == 0, "status 99 has a text");
    csm_shape many = {4, 64, {0}};
    for (int i = 0; i < 64; i++) many.shape[i] = 1;
    check(csm_softmax_f32(&many, &vx, &vy, NULL) == CSM_OK, "64 axes");
}

void test_softmax(size_t every);
void test_blocks(size_t every);
void test_shards(size_t every);
/* counts[0] passed, counts[1] failed */
void test_loss(size_t every, uint64_t *hash, long counts[2]);
void test_sparse(size_t every, uint64_t *hash, long counts[2]);
void test_crf(size_t every, uint64_t *hash, long counts[2]);
void test_int8(size_t every, uint64_t *hash, long counts[2]);

int main(int argc, char **argv) {
    size_t every = argc > 2 && !strcmp(argv[1], "--every") ? (size_t)strtoul(argv[2], NULL, 10) : 1;
    if (every < 1) every = 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("default %s; compared:", csm_isa());
    for (int i = 0; i < ALL_ISAS; i++)
        if (csm_isa_available(all_isas[i])) {
            isas[isa_count++] = all_isas[i];
            printf(" %s", all_isas[i]);
        }
    printf("\n");
    test_arguments();
    test_maximum();
    test_softmax(every);
    test_blocks(every < 25 ? 1 : every / 25);
    test_shards(every < 25 ? 1 : every / 25);
    long loss[2] = {0, 0};
    test_loss(every, &hash, loss);
    test_sparse(every, &hash, loss);
    test_crf(every, &hash, loss);
    test_int8(every, &hash, loss);
    passed += loss[0];
    failed += loss[1];
    printf("hash %016llx\n", (unsigned long long)hash);
    test_no_memory();
    if (every < 20) test_scratch();
    test_environment();
    test_interrupt();
    test_shares();
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0;
}
