/* The choice of an instruction set and the public entry points. */
#include "internal.h"

#include <stdatomic.h>
#include <string.h>

typedef struct isa {
    const char *name;
    unsigned needs;
    const csm_table *const *table;
} isa;
#define ROW(name, needs) {#name, needs, &csm_table_##name},
static const isa isas[] = {CSM_ISAS(ROW)};
#undef ROW
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

#ifndef CSM_SOURCE_HASH
#define CSM_SOURCE_HASH "" /* nobody asks */
#endif

static _Atomic(const csm_table *) chosen;

static const isa *find(const char *name) {
    for (int i = 0; i < ISA_COUNT; i++)
        if (strcmp(isas[i].name, name) == 0) return &isas[i];
    return NULL;
}
static int usable(const isa *i) { return *i->table && (csm_cpu_features() & i->needs) == i->needs; }

const csm_table *csm_current_table(void) {
    const csm_table *table = atomic_load_explicit(&chosen, memory_order_acquire);
    if (!table) {
        for (int i = 0; i < ISA_COUNT; i++)
            if (usable(&isas[i])) table = *isas[i].table;
        atomic_store_explicit(&chosen, table, memory_order_release);
    }
    return table;
}

/* What a call reads and writes is thought to be in cache up to this: on Zen 3 (32 MB of last cache, shared) telling of
 * rows of 1000 costs 6 % at 1 to 4 MB, nothing at 8, and saves 13 % at 12 and 20 to 28 % at 24 MB and more. */
static const double CACHED = 8e6;

/* Asked once: in a virtual machine CPUID takes longer than a small call. */
csm_tells csm_tells_of(double bytes) {
    static atomic_int known; /* 0: not yet */
    if (bytes <= CACHED) return CSM_TELLS_NOTHING;
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (!answer) {
        answer = csm_cpu_features() & CSM_CPU_FETCHES ? CSM_TELLS_LONG : CSM_TELLS_ALL;
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return (csm_tells)answer;
}

const char *csm_isa(void) { return csm_current_table()->name; }
int csm_isa_built(const char *name) {
    const isa *i = find(name);
    return i && *i->table;
}
int csm_isa_available(const char *name) {
    const isa *i = find(name);
    return i && usable(i);
}
int csm_select_isa(const char *name) {
    const isa *i = find(name);
    if (!i || !usable(i)) return -1;
    atomic_store_explicit(&chosen, *i->table, memory_order_release);
    return 0;
}

const char *csm_status_text(csm_status status) {
    switch (status) {
    case CSM_OK: return "ok";
    case CSM_NO_MEMORY: return "out of memory";
    case CSM_INTERRUPTED: return "interrupted";
    case CSM_BAD_SHAPE: return "too many axes, or more bytes than PTRDIFF_MAX";
    case CSM_BAD_TEMPERATURE: return "temperature is negative or NaN, or not positive and finite in a gradient";
    case CSM_SMALL_SCRATCH: return "scratch is smaller than csm_scratch_size()";
    case CSM_BAD_LABEL: return "a label is not a class, or a soft label is negative or not finite";
    case CSM_BAD_OPTION: return "an option is outside its range, or contradicts another";
    case CSM_NO_MASS: return "a row to draw from holds NaN or +inf, or nothing but -inf";
    }
    return "unknown status";
}

#define UNARY(op, suffix)                                                                           \
    csm_status csm_##op##_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *y,    \
                                   const csm_options *o) {                                          \
        return csm_run(CSM_OP_##op, CSM_DTYPE_##suffix, csm_current_table(), shape, x, NULL, y, o); \
    }
#define BINARY(op, suffix)                                                                                            \
    csm_status csm_##op##_##suffix(const csm_shape *shape, const csm_view *dy, const csm_view *y, const csm_view *dx, \
                                   const csm_options *o) {                                                            \
        return csm_run(CSM_OP_##op, CSM_DTYPE_##suffix, csm_current_table(), shape, dy, y, dx, o);                    \
    }
#define LOSS(suffix)                                                                                           \
    csm_status csm_cross_entropy_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *gradient, \
                                          double *loss, csm_loss_options *o) {                                 \
        return csm_run_loss(CSM_DTYPE_##suffix, csm_current_table(), shape, x, gradient, loss, o);             \
    }
#define TOPK(suffix)                                                                                          \
    csm_status csm_topk_##suffix(const csm_shape *shape, const csm_view *x, size_t k, const csm_view *values, \
                                 const csm_view *indices, const csm_topk_options *o) {                        \
        return csm_run_topk(CSM_DTYPE_##suffix, csm_current_table(), shape, x, k, values, indices, o);        \
    }
#define ENTMAX(suffix)                                                                                              \
    csm_status csm_entmax_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *y,                    \
                                   const csm_entmax_options *o) {                                                   \
        return csm_run_entmax(CSM_DTYPE_##suffix, csm_current_table(), shape, x, NULL, y, o);                       \
    }                                                                                                               \
    csm_status csm_entmax_vjp_##suffix(const csm_shape *shape, const csm_view *dy, const csm_view *y,               \
                                       const csm_view *dx, const csm_entmax_options *o) {                           \
        return csm_run_entmax(CSM_DTYPE_##suffix, csm_current_table(), shape, dy, y, dx, o);                        \
    }                                                                                                               \
    csm_status csm_entmax_loss_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *labels,          \
                                        const csm_view *soft, const csm_view *gradient, double *loss,               \
                                        const csm_entmax_options *o) {                                              \
        return csm_run_entmax_loss(CSM_DTYPE_##suffix, csm_current_table(), shape, x, labels, soft, gradient, loss, \
                                   o);                                                                              \
    }
#define SAMPLE(suffix)                                                                                               \
    csm_status csm_sample_##suffix(const csm_shape *shape, const csm_view *x, size_t draws, const csm_view *uniform, \
                                   const csm_view *indices, const csm_sample_options *o) {                           \
        return csm_run_sample(CSM_DTYPE_##suffix, csm_current_table(), shape, x, draws, uniform, indices, o);        \
    }
#define ROWS(op, suffix, storage)                                                                                   \
    csm_status csm_##op##_rows_##suffix(const storage *x, ptrdiff_t x_step, storage *y, ptrdiff_t y_step, size_t n, \
                                        size_t begin, size_t end, double temperature) {                             \
        if (end < begin) return CSM_BAD_SHAPE;                                                                      \
        csm_shape shape = {.n = n, .ndim = 1, .shape = {end - begin}};                                              \
        const ptrdiff_t size = (ptrdiff_t)sizeof *x, first = (ptrdiff_t)begin;                                      \
        csm_view from = {.data = (void *)(uintptr_t)(x + first * x_step), .axis_stride = size};                     \
        csm_view to = {.data = y + first * y_step, .axis_stride = size};                                            \
        from.strides[0] = x_step * size;                                                                            \
        to.strides[0] = y_step * size;                                                                              \
        csm_options options = CSM_OPTIONS_INIT;                                                                     \
        options.temperature = temperature;                                                                          \
        return csm_##op##_##suffix(&shape, &from, &to, &options);                                                   \
    }
#define ENTRIES(suffix, storage, compute) \
    UNARY(softmax, suffix)                \
    UNARY(log_softmax, suffix)            \
    UNARY(logsumexp, suffix)              \
    BINARY(softmax_vjp, suffix)           \
    BINARY(log_softmax_vjp, suffix)       \
    LOSS(suffix)                          \
    TOPK(suffix)                          \
    ENTMAX(suffix)                        \
    SAMPLE(suffix)                        \
    ROWS(softmax, suffix, storage)        \
    ROWS(log_softmax, suffix, storage)    \
    ROWS(logsumexp, suffix, storage)
CSM_DTYPES(ENTRIES)

const char *csm_source(void) { return CSM_SOURCE_HASH; }
