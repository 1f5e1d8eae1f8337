/* Output layers in int8: the integers of the worst codes on every instruction set, and a whole layer (codes, top-k,
 * bounds, exact scores) byte for byte against the scalar unit.  Called by test_core.c, whose hash it continues.
 */
#include "../../src_c/core/extension.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ISA_NAME(name, bits) #name,
static const char *const isas[] = {CSM_ISAS(ISA_NAME)};
enum { ISAS = sizeof isas / sizeof isas[0], QUERIES = 9, BEST = 5, MOST = 80, WIDTH = 70 };

static uint64_t state = 88172645463325252u;
static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
/* From -1 to 1, an eighth of the time to 30. */
static double uniform(void) {
    const double x = (double)next() / 2147483648.0 - 1;
    return next() % 8 ? x : 30 * x;
}

/* Sums of u8 x s8, at the limits (kind 0 to 3) and random ones, of up to nine vectors. */
static void test_integers(size_t steps, size_t vectors, int kind) {
    const size_t blocks = (vectors + 3) / 4;
    uint8_t *u = malloc(64 * steps);
    int8_t *x = malloc(16 * blocks * steps);
    int32_t offset[12] = {0}, out[12 * 16];
    if (!u || !x) abort();
    for (size_t i = 0; i < 64 * steps; i++) u[i] = (uint8_t)(kind == 4 ? next() % 256 : kind % 2 ? 255 : 0);
    for (size_t i = 0; i < 16 * blocks * steps; i++)
        x[i] = (int8_t)(kind == 4 ? (int)(next() % 127) - 63 : kind < 2 ? 63 : -63);
    for (size_t v = 0; v < vectors; v++)
        for (size_t s = 0; s < steps; s++)
            for (size_t b = 0; b < 4; b++) offset[v] -= 128 * x[16 * (v / 4 * steps + s) + 4 * (v % 4) + b];
    for (int which = 0; which < 2; which++) {
        if (csm_run_int8_dots(csm_current_table(), which, u, steps, x, vectors, offset, out) != 0) continue;
        for (size_t v = 0; v < vectors; v++)
            for (size_t c = 0; c < 16; c++) {
                int64_t sum = 0;
                for (size_t s = 0; s < steps; s++)
                    for (size_t b = 0; b < 4; b++)
                        sum += (int64_t)(u[64 * s + 4 * c + b] - 128) * x[16 * (v / 4 * steps + s) + 4 * (v % 4) + b];
                if (sum != out[16 * v + c]) {
                    printf("FAILED int8 dots %s: %zu steps, kind %d\n", csm_isa(), steps, kind);
                    exit(1);
                }
            }
    }
    free(u);
    free(x);
}

typedef struct results {
    uint8_t codes[2][MOST * (WIDTH + 2)];
    float numbers[5][MOST];
    double values[QUERIES * BEST], scores[MOST], bounds[MOST], exact[MOST], size;
    int64_t indices[QUERIES * BEST], found[QUERIES], rescored[QUERIES];
} results;

/* Queries one by one, which begin with four bits of the codes: the answers of the batch. */
static void test_single(const csm_table *t, csm_int8_layer *l, const csm_int8_search *batch) {
    static uint8_t nibbles[MOST * (WIDTH + 2)], part[MOST];
    static float gap[MOST / 16], reach[MOST / 16];
    l->nibbles = nibbles;
    l->gap = gap;
    l->reach = reach;
    l->part = part;
    l->is_biased = 1;
    int status = csm_run_int8_nibbles(t, l, (l->classes + 15) / 16, NULL);
    for (size_t q = 0; q < QUERIES && !status; q++) {
        double values[BEST] = {0};
        int64_t indices[BEST] = {0}, found, rescored;
        csm_int8_search s = {.queries = 1, .k = batch->k, .x = batch->x + q * l->dims, .values = values};
        s.indices = indices;
        s.found = &found;
        s.rescored = &rescored;
        status = csm_run_int8_topk(t, l, &s) || found != batch->found[q] ||
                 memcmp(values, batch->values + q * s.k, s.k * sizeof(double)) != 0 ||
                 memcmp(indices, batch->indices + q * s.k, s.k * sizeof(int64_t)) != 0;
    }
    if (status) {
        printf("FAILED int8 %s: single queries of %zu x %zu\n", csm_isa(), l->classes, l->dims);
        exit(1);
    }
}

static void compute(const float *w, const double *x, size_t classes, size_t dims, int limbs, int threads, results *r) {
    static int16_t exponent[WIDTH];
    memset(r, 0, sizeof *r);
    for (size_t d = 0; d < dims; d++) exponent[d] = (int16_t)(d % 3);
    for (size_t j = 0; j < classes; j++) r->numbers[4][j] = (float)j / 64;
    csm_int8_layer l = {.classes = classes, .dims = dims, .dtype = CSM_DTYPE_f32, .exponent = exponent, .w = w};
    l.codes = r->codes[0];
    l.second = limbs == 2 ? r->codes[1] : NULL;
    l.scale = r->numbers[0];
    l.residual = r->numbers[1];
    l.second_residual = limbs == 2 ? r->numbers[2] : NULL;
    l.norm = r->numbers[3];
    l.bias = r->numbers[4];
    l.w_row = (ptrdiff_t)(dims * sizeof(float));
    l.w_axis = sizeof(float);
    l.ratio = 100;
    l.threads = threads;
    csm_int8_search s = {.queries = QUERIES, .k = classes < BEST ? classes : BEST, .x = x};
    s.values = r->values;
    s.indices = r->indices;
    s.found = r->found;
    s.rescored = r->rescored;
    const csm_table *t = csm_current_table();
    int status = csm_run_int8_quantise(t, &l, classes, NULL);
    for (size_t j = 0; j < classes; j++) l.largest = l.norm[j] > l.largest ? l.norm[j] : l.largest;
    status = status || csm_run_int8_topk(t, &l, &s);
    if (status || csm_run_int8_bounds(t, &l, x, r->scores, r->bounds, &r->size) ||
        csm_run_int8_scores(t, &l, x, classes, NULL, r->exact)) {
        printf("FAILED int8 %s: status\n", csm_isa());
        exit(1);
    }
    test_single(t, &l, &s);
    for (size_t j = 0; j < classes; j++)
        if (!(r->exact[j] >= r->scores[j] - r->bounds[j] && r->exact[j] <= r->scores[j] + r->bounds[j])) {
            printf("FAILED int8 %s: class %zu is outside of its bounds\n", csm_isa(), j);
            exit(1);
        }
}

void test_int8(size_t every, uint64_t *hash, long counts[2]);
void test_int8(size_t every, uint64_t *hash, long counts[2]) {
    static float w[MOST * WIDTH];
    static double x[QUERIES * WIDTH];
    static results expected, got;
    const char *before = csm_isa();
    size_t number = 0;
    for (int i = 0; i < ISAS; i++) {
        if (csm_select_isa(isas[i]) != 0) continue;
        for (size_t steps = 1; steps < 40; steps += 1 + steps / 2)
            for (size_t vectors = 1; vectors <= 9; vectors++)
                for (int kind = 0; kind < 5; kind++) test_integers(steps, vectors, kind);
        test_integers(1 << 16, 1, 1); /* the most dimensions */
    }
    state = 88172645463325252u; /* however many instruction sets there are */
    for (size_t classes = 1; classes <= MOST; classes += 1 + classes / 3)
        for (size_t dims = 1; dims <= WIDTH; dims += 1 + dims / 3)
            for (int limbs = 1; limbs <= 2; limbs++) {
                for (size_t j = 0; j < classes * dims; j++) w[j] = (float)uniform();
                for (size_t j = 0; j < QUERIES * dims; j++) x[j] = uniform();
                if (number++ % (every < 25 ? 1 : every / 25)) continue;
                csm_select_isa("scalar");
                compute(w, x, classes, dims, limbs, 1, &expected);
                const unsigned char *bytes = (const unsigned char *)&expected;
                for (size_t j = 0; j < sizeof expected; j++) *hash = (*hash ^ bytes[j]) * 1099511628211u;
                for (int i = 0; i < ISAS; i++)
                    for (int threads = 1; threads <= 3; threads += 2) {
                        if (csm_select_isa(isas[i]) != 0) continue;
                        compute(w, x, classes, dims, limbs, threads, &got);
                        counts[0]++;
                        if (memcmp(&got, &expected, sizeof got) != 0) {
                            printf("FAILED int8 %s: %zu x %zu, %d limbs\n", isas[i], classes, dims, limbs);
                            exit(1);
                        }
                    }
            }
    csm_select_isa(before);
    printf("int8 layers: %zu\n", number);
}
