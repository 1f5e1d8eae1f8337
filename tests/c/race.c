/* Concurrent calls from several threads, which share the inputs and have separate workers and outputs, for
 * ThreadSanitizer (tests/c/run.sh tsan): it reports unordered accesses of two threads to the same memory.
 *
 *     race [SECONDS]
 *
 * Between calls the threads use the page pool of the Python package, which needs no Python.  The first calls of the
 * process are concurrent too, so that several threads initialise the library at once.
 */
#include "csoftmax.h"
#include "_cpu/pages.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CALLERS = 4, ROWS = 96, N = 1000, K = 5, KINDS = 9 };
static float x[ROWS * N];
static double wide[ROWS * N], uniform[ROWS];
static int64_t labels[ROWS];
static unsigned char where[ROWS * N];
static csm_shape shape = {.n = N, .ndim = 1, .shape = {ROWS}};
static pthread_barrier_t start;
static double seconds = 1;

/* The outputs of a call; bytes that it does not write stay 0. */
typedef struct output {
    double wide[ROWS * N], loss[ROWS];
    float narrow[ROWS * N];
    int64_t index[ROWS * K];
} output;

static csm_status call(int kind, output *to) {
    const csm_view from = csm_contiguous(&shape, N, x, sizeof *x), doubles = csm_contiguous(&shape, N, wide, 8);
    const csm_view y = csm_contiguous(&shape, N, to->narrow, 4), wide_y = csm_contiguous(&shape, N, to->wide, 8);
    const csm_view label = csm_contiguous(&shape, 1, labels, 8), mask = csm_contiguous(&shape, N, where, 1);
    const csm_view each = csm_contiguous(&shape, 1, to->narrow, 4), draw = csm_contiguous(&shape, 1, uniform, 8);
    const csm_view best = csm_contiguous(&shape, K, to->narrow, 4), at = csm_contiguous(&shape, K, to->index, 8);
    const csm_view drawn = csm_contiguous(&shape, 1, to->index, 8);
    csm_options o = csm_default_options();
    csm_loss_options loss = csm_default_loss_options();
    csm_topk_options topk = csm_default_topk_options();
    csm_entmax_options entmax = csm_default_entmax_options();
    csm_sample_options sample = csm_default_sample_options();
    o.threads = loss.threads = topk.threads = entmax.threads = sample.threads = 3;
    loss.labels = &label;
    switch (kind) {
    case 0: return csm_softmax_f32(&shape, &from, &y, &o);
    case 1: return csm_softmax_f64(&shape, &doubles, &wide_y, &o);
    case 2: return csm_logsumexp_f32(&shape, &from, &each, &o);
    case 3: o.where = &mask; return csm_log_softmax_f32(&shape, &from, &y, &o);
    case 4: return csm_softmax_vjp_f32(&shape, &from, &from, &y, &o);
    case 5: return csm_cross_entropy_f32(&shape, &from, &y, to->loss, &loss);
    case 6: return csm_topk_f32(&shape, &from, K, &best, &at, &topk);
    case 7: return csm_entmax_f32(&shape, &from, &y, &entmax);
    default: return csm_sample_f32(&shape, &from, 1, &draw, &drawn, &sample);
    }
}

static output *compute(int kind) {
    output *to = calloc(1, sizeof *to);
    csm_status status = to ? call(kind, to) : CSM_NO_MEMORY;
    if (status == CSM_OK) return to;
    printf("FAILED call %d: %s\n", kind, csm_status_text(status));
    exit(1);
}

static void *caller(void *number) {
    output *first[KINDS];
    long calls = 0;
    time_t stop = 0;
    pthread_barrier_wait(&start);
    for (int kind = 0; kind < KINDS; kind++) first[kind] = compute((kind + *(int *)number) % KINDS);
    do {
        for (int kind = 0; kind < KINDS; kind++, calls++) {
            output *again = compute((kind + *(int *)number) % KINDS);
            if (memcmp(again, first[kind], sizeof *again) != 0) {
                printf("FAILED call %d: other bits in a repeated call\n", kind);
                exit(1);
            }
            free(again);
        }
        unsigned char *memory = csm_take_pages(CSM_LARGE);
        if (memory) {
            memory[0] = memory[CSM_LARGE - 1] = (unsigned char)*(int *)number;
            csm_give_pages(memory, CSM_LARGE);
        }
        if (!stop) stop = time(NULL) + (time_t)seconds;
    } while (time(NULL) < stop);
    for (int kind = 0; kind < KINDS; kind++) free(first[kind]);
    return (void *)calls;
}

int main(int argc, char **argv) {
    pthread_t thread[CALLERS];
    int number[CALLERS];
    long calls = 0;
    if (argc > 1) seconds = atof(argv[1]);
    uint64_t state = 1;
    for (size_t i = 0; i < ROWS * N; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        wide[i] = x[i] = (float)((int64_t)(state >> 40) - (1 << 23)) / (1 << 20);
        where[i] = state >> 60 != 0;
    }
    for (size_t i = 0; i < ROWS; i++) {
        labels[i] = (int64_t)(i * 7 % N);
        uniform[i] = ((double)i + 0.5) / ROWS;
    }
    csm_set_pages_limit(2 * (size_t)CSM_LARGE);
    pthread_barrier_init(&start, NULL, CALLERS);
    for (int i = 0; i < CALLERS; i++) {
        number[i] = i;
        if (pthread_create(&thread[i], NULL, caller, &number[i]) != 0) return 1;
    }
    for (int i = 0; i < CALLERS; i++) {
        void *made;
        pthread_join(thread[i], &made);
        calls += (long)made;
    }
    printf("%ld passed, 0 failed\n", calls);
    return 0;
}
