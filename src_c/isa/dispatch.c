/* The choice of an instruction set. */
#include "dispatch.h"

#include <stdatomic.h>

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

static const isa *find_isa(const char *name) {
    for (int i = 0; i < ISA_COUNT; i++)
        if (strcmp(isas[i].name, name) == 0) return &isas[i];
    return NULL;
}
static int is_usable(const isa *i) { return *i->table && (csm_cpu_features() & i->needs) == i->needs; }

const csm_table *csm_current_table(void) {
    const csm_table *table = atomic_load_explicit(&chosen, memory_order_acquire);
    if (!table) {
        for (int i = 0; i < ISA_COUNT; i++)
            if (is_usable(&isas[i])) table = *isas[i].table;
        atomic_store_explicit(&chosen, table, memory_order_release);
    }
    return table;
}

/* Calls that move at most this many bytes are assumed to be cached and prefetch nothing.  On Zen 3 (32 MB of shared
 * last-level cache) prefetching rows of 1000 costs 6 % at 1 to 4 MB and nothing at 8; it saves 13 % at 12 MB and 20 to
 * 28 % at 24 MB and more. */
static const double CACHED_BYTES = 8e6;

csm_prefetch csm_prefetch_for(double bytes) {
    static atomic_int
        known; /* 0: not yet.  Cached, because CPUID takes longer than a small call in virtual machines. */
    if (bytes <= CACHED_BYTES) return CSM_PREFETCH_NOTHING;
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (!answer) {
        answer = csm_cpu_features() & CSM_CPU_FETCHES ? CSM_PREFETCH_LONG : CSM_PREFETCH_ALL;
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return (csm_prefetch)answer;
}

const csm_table *csm_half_table(const csm_table *table) {
    return csm_table_avx2 && table == csm_table_avx512 ? csm_table_avx2 : table;
}

const char *csm_isa(void) { return csm_current_table()->name; }
int csm_isa_built(const char *name) {
    const isa *i = find_isa(name);
    return i && *i->table;
}
int csm_isa_available(const char *name) {
    const isa *i = find_isa(name);
    return i && is_usable(i);
}
int csm_select_isa(const char *name) {
    const isa *i = find_isa(name);
    if (!i || !is_usable(i)) return -1;
    atomic_store_explicit(&chosen, *i->table, memory_order_release);
    return 0;
}

#ifndef CSM_SOURCE_HASH
#define CSM_SOURCE_HASH "" /* only the Python extension reads it */
#endif
const char *csm_source(void) { return CSM_SOURCE_HASH; }
