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
#define ENTRIES(suffix, storage, compute) \
    UNARY(softmax, suffix)                \
    UNARY(log_softmax, suffix)            \
    UNARY(logsumexp, suffix)              \
    BINARY(softmax_vjp, suffix)           \
    BINARY(log_softmax_vjp, suffix)       \
    LOSS(suffix)                          \
    TOPK(suffix)                          \
    ENTMAX(suffix)                        \
    SAMPLE(suffix)
CSM_DTYPES(ENTRIES)
