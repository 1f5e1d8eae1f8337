/* Selection among integers, compared as int64_t.  uint64_t is loaded with its first bit flipped, which keeps the order;
 * the driver (ops/topk.c) widens shorter types.  Undefines V and REAL afterwards. */
#undef V
#undef REAL
#undef KEY_MAX
#undef KEY_MIN
#undef REAL_MAX
#undef REAL_MIN
#undef SET_REAL
#undef HAS_NAN
#define V(name) i64_##name
#define REAL int64_t
#define REAL_IS_INTEGER
#define HAS_NAN 0
#define i64_LOAD_REAL i64_load
#define i64_STORE_REAL i64_store
#include "select.inc.h"

/* The first count lanes from memory, the others from `fill`. */
INLINE i64_t i64_load_part(const int64_t *p, size_t count, i64_t fill) {
    int64_t lane[i64_W];
    i64_store(lane, fill);
    for (size_t i = 0; i < count && i < i64_W; i++) lane[i] = p[i];
    return i64_load(lane);
}
INLINE i64_t i64_load_unsigned(const uint64_t *p) { return i64_flip(i64_load((const int64_t *)(const void *)p)); }
INLINE i64_t i64_load_part_unsigned(const uint64_t *p, size_t count, i64_t fill) {
    return i64_flip(i64_load_part((const int64_t *)(const void *)p, count, i64_flip(fill)));
}

#define T int64_t
#define STORED_AS_REAL 1
#define FN(name) name##_i64
#define LOAD i64_load
#define LOAD_PART i64_load_part
#include "topk.inc.h"
#undef T
#undef STORED_AS_REAL
#undef FN
#undef LOAD
#undef LOAD_PART

#define T uint64_t
#define STORED_AS_REAL 0
#define FN(name) name##_u64
#define LOAD i64_load_unsigned
#define LOAD_PART i64_load_part_unsigned
#include "topk.inc.h"
#undef T
#undef STORED_AS_REAL
#undef FN
#undef LOAD
#undef LOAD_PART
