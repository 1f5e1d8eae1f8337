/* Cross-entropy in the C core: every kind of label and option, dtype, layout, thread count and instruction set against
 * the scalar unit on contiguous rows, byte for byte.  Called by test_core.c, whose hash it continues.
 */
#include "../../src_c/core/call.h"
#include "../../src_c/core/extension.h"
#include "../../src_c/vec/half.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef csm_status (*loss_function)(const csm_shape *, const csm_view *, const csm_view *, double *,
                                    csm_loss_options *);
#define FUNCTION(name, storage, compute) csm_cross_entropy_##name,
#define ITEM(name, storage, compute) sizeof(storage),
#define WIDE_ITEM(name, storage, compute) sizeof(wide_##compute),
typedef float wide_f32;
typedef double wide_f64;
#define ISA_NAME(name, bits) #name,
static const loss_function functions[] = {CSM_DTYPES(FUNCTION)};
static const size_t sizes[] = {CSM_DTYPES(ITEM)}, wide_sizes[] = {CSM_DTYPES(WIDE_ITEM)};
static const char *const isas[] = {CSM_ISAS(ISA_NAME)};
enum { ISAS = sizeof isas / sizeof isas[0], ROWS = 5 };

static uint64_t state = 88172645463325252u;
static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static void put(char *to, csm_dtype dtype, double value) {
    float f = (float)value;
    uint16_t h;
    uint32_t u;
    if (dtype == CSM_DTYPE_f64) {
        memcpy(to, &value, 8);
    } else if (dtype == CSM_DTYPE_f32) {
        memcpy(to, &f, 4);
    } else {
        memcpy(&u, &f, 4);
        h = dtype == CSM_DTYPE_f16 ? csm_to_f16(f) : (uint16_t)(u >> 16);
        memcpy(to, &h, 2);
    }
}
static void put_wide(char *to, csm_dtype dtype, double value) {
    put(to, dtype == CSM_DTYPE_f64 ? CSM_DTYPE_f64 : CSM_DTYPE_f32, value);
}

typedef struct problem {
    csm_dtype dtype;
    size_t n;
    unsigned variant; /* bits: soft, weight, smoothing, z-loss, temperature, clips, sample weight, range */
    char *x, *soft, *weight;
    int64_t labels[ROWS];
    double sample[ROWS];
} problem;
enum { SOFT = 1, WEIGHT = 2, SMOOTHING = 4, Z_LOSS = 8, TEMPERATURE = 16, CLIPS = 32, SAMPLE = 64, FAR = 128 };

static void *need(size_t size) {
    void *p = malloc(size + 64);
    if (!p) abort();
    return p;
}

/* Computes the loss, and the gradient as contiguous rows.  transposed: the arrays are transposed in memory.  in_place:
 * the gradient overwrites the logits. */
static csm_status compute(const problem *p, int transposed, int in_place, int threads, csm_reduction reduction,
                          double *loss, char *gradient) {
    const size_t n = p->n, size = sizes[p->dtype], wide = wide_sizes[p->dtype], all = ROWS * n;
    csm_shape shape = {.n = n, .ndim = 1, .shape = {ROWS}};
    char *x = need(all * size), *y = in_place ? x : need(all * size), *q = need(all * wide);
    memset(y, 0x5a, all * size);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t j = 0; j < n; j++) {
            size_t to = transposed ? j * ROWS + r : r * n + j;
            memcpy(x + to * size, p->x + (r * n + j) * size, size);
            memcpy(q + to * wide, p->soft + (r * n + j) * wide, wide);
        }
    csm_view vx = csm_contiguous(&shape, n, x, size), vy = csm_contiguous(&shape, n, y, size);
    csm_view vq = csm_contiguous(&shape, n, q, wide);
    csm_view vl = csm_contiguous(&shape, 1, p->labels, 8), vs = csm_contiguous(&shape, 1, p->sample, 8);
    if (transposed) {
        vx.axis_stride = vy.axis_stride = (ptrdiff_t)(ROWS * size);
        vx.strides[0] = vy.strides[0] = (ptrdiff_t)size;
        vq.axis_stride = (ptrdiff_t)(ROWS * wide);
        vq.strides[0] = (ptrdiff_t)wide;
    }
    csm_loss_options o = csm_default_loss_options();
    if (p->variant & SOFT) {
        o.soft = &vq;
    } else {
        o.labels = &vl;
        o.has_ignore = 1;
        o.ignore = (uint64_t)-100;
    }
    if (p->variant & WEIGHT) o.weight = p->weight;
    if (p->variant & SMOOTHING) o.label_smoothing = 0.1;
    if (p->variant & Z_LOSS) o.z_loss = 0.01;
    if (p->variant & TEMPERATURE) o.temperature = 0.7;
    if (p->variant & CLIPS) o.clip_norm = 0.4, o.clip_value = 0.25;
    if (p->variant & SAMPLE) o.sample_weight = &vs;
    o.reduction = reduction;
    o.threads = threads;
    csm_status status = functions[p->dtype](&shape, &vx, &vy, loss, &o);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t j = 0; j < n; j++)
            memcpy(gradient + (r * n + j) * size, y + (transposed ? j * ROWS + r : r * n + j) * size, size);
    if (!in_place) free(y);
    free(x);
    free(q);
    return status;
}

static void add_to(uint64_t *hash, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) *hash = (*hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
}

void test_loss(size_t every, uint64_t *hash, long counts[2]);
void test_loss(size_t every, uint64_t *hash, long counts[2]) {
    static const size_t lengths[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 129, 1000, 4095, 4096, 4097, 9001};
    size_t at = 0;
    const char *before = csm_isa();
    for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++)
            for (unsigned variant = 0; variant < 256; variant++) {
                const size_t n = lengths[l], size = sizes[dtype], wide = wide_sizes[dtype];
                if (at++ % (16 * every) != (l * 5 + (size_t)dtype) % 16) continue;
                problem p = {.dtype = (csm_dtype)dtype, .n = n, .variant = variant};
                p.x = need(ROWS * n * size);
                p.soft = need(ROWS * n * wide);
                p.weight = need(n * wide);
                for (size_t i = 0; i < ROWS * n; i++) {
                    double v = (double)(int)(next() % 4001 - 2000) / 128;
                    if (variant & FAR) v *= dtype == CSM_DTYPE_f16 ? 100 : 1e7; /* rows that are transformed */
                    put(p.x + i * size, p.dtype, v);
                    put_wide(p.soft + i * wide, p.dtype, next() % 3 ? 0 : (double)(next() % 1000) / 1024);
                }
                for (size_t j = 0; j < n; j++) put_wide(p.weight + j * wide, p.dtype, (double)(next() % 512) / 256);
                for (size_t r = 0; r < ROWS; r++) {
                    p.labels[r] = r == 3 ? -100 : (int64_t)(next() % n);
                    p.sample[r] = (double)(next() % 5) / 2;
                }
                if (variant % 3 == 0) put(p.x + n * size, p.dtype, CSM_NAN);
                if (variant % 3 == 1) put(p.x, p.dtype, -CSM_INF);

                double expected[ROWS], got[ROWS], mean, other_mean;
                char *gradient = need(ROWS * n * size), *other = need(ROWS * n * size);
                if (csm_select_isa("scalar")) abort();
                csm_status status = compute(&p, 0, 0, 1, CSM_NONE, expected, gradient);
                int ok = status == CSM_OK;
                add_to(hash, expected, sizeof expected);
                add_to(hash, gradient, ROWS * n * size);
                compute(&p, 0, 0, 1, CSM_MEAN, &mean, other);
                add_to(hash, &mean, sizeof mean);
                add_to(hash, other, ROWS * n * size);
                for (int i = 0; i < ISAS; i++) {
                    if (csm_select_isa(isas[i])) continue;
                    for (int form = 0; form < 4; form++) {
                        compute(&p, form & 1, form & 2, form == 3 ? 3 : 1, CSM_NONE, got, other);
                        ok &= !memcmp(got, expected, sizeof got) && !memcmp(other, gradient, ROWS * n * size);
                    }
                    compute(&p, 1, 1, 2, CSM_MEAN, &other_mean, other);
                    ok &= !memcmp(&mean, &other_mean, sizeof mean);
                }
                counts[!ok]++;
                if (!ok && counts[1] < 20)
                    printf("FAILED loss dtype %d n %zu variant %u status %d\n", dtype, n, variant, (int)status);
                free(p.x);
                free(p.soft);
                free(p.weight);
                free(gradient);
                free(other);
            }
    csm_select_isa(before);
}
