/* Selection among integers, compared as int64_t.  uint64_t is loaded with its first bit flipped, which keeps the order;
 * types shorter than 4 bytes are widened by the driver (ops/topk.c).  The last of a unit's types: V, REAL and T stay
 * undefined afterwards. */
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

INLINE i64_t i64_load_u64(const uint64_t *p) { return i64_flip(i64_load((const int64_t *)(const void *)p)); }
/* The first count lanes from memory, the others from `fill`. */
#define LOAD_FIRST(name, type, from)                                          \
    INLINE i64_t name(const type *p, size_t count, i64_t fill) {              \
        int64_t lane[i64_W];                                                  \
        i64_store(lane, fill);                                                \
        for (size_t i = 0; i < count && i < i64_W; i++) lane[i] = from(p[i]); \
        return i64_load(lane);                                                \
    }
#define SAME(x) (int64_t)(x)
#define FLIPPED(x) (int64_t)((x) ^ (uint64_t)INT64_MIN)
LOAD_FIRST(i64_load_part_i32, int32_t, SAME)
LOAD_FIRST(i64_load_part_u32, uint32_t, SAME)
LOAD_FIRST(i64_load_part, int64_t, SAME)
LOAD_FIRST(i64_load_part_u64, uint64_t, FLIPPED)
#undef LOAD_FIRST
#undef SAME
#undef FLIPPED

#define STORED_AS_REAL 1 /* a conversion makes T a REAL */
#define T int32_t
#define FN(name) name##_i32
#define LOAD i64_load_i32
#define LOAD_PART i64_load_part_i32
#include "topk.inc.h"
#undef T
#undef FN
#undef LOAD
#undef LOAD_PART

#define T uint32_t
#define FN(name) name##_u32
#define LOAD i64_load_u32
#define LOAD_PART i64_load_part_u32
#include "topk.inc.h"
#undef T
#undef FN
#undef LOAD
#undef LOAD_PART

#define T int64_t
#define FN(name) name##_i64
#define LOAD i64_load
#define LOAD_PART i64_load_part
#include "topk.inc.h"
#undef T
#undef STORED_AS_REAL
#undef FN
#undef LOAD
#undef LOAD_PART

#define STORED_AS_REAL 0
#define T uint64_t
#define FN(name) name##_u64
#define LOAD i64_load_u64
#define LOAD_PART i64_load_part_u64
#include "topk.inc.h"
#undef T
#undef STORED_AS_REAL
#undef FN
#undef LOAD
#undef LOAD_PART
