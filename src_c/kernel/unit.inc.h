/* All kernels for all dtypes in one vocabulary, and the table of them.  A unit (isa/NAME.c) defines CSM_UNIT and
 * includes its vocabulary, then this file. */
#ifndef CSM_UNIT
#error "unit.inc.h needs CSM_UNIT, the name of the instruction set"
#endif

#include "../math/pair.h"
#include "cross_entropy/row.h"
#include "table.h"

enum {
    ALIGNED_LENGTH = 512, /* elements of the shortest row whose passes begin at a cache line */
    ALIGNED_IN_PLACE_LENGTH = 2048, /* the same for a pass that loads recently stored data in other vectors */
    EARLY_MAX_LENGTH =
        2048, /* longest row that finds the next row's maximum: in float, both and the result take 24 KB */
    GROUPED_LOG_LENGTH = 512, /* longest row whose tail is found in a group of rows */
    GROUPED_LOSS_LENGTH = CSM_LOSS_GROUP_LENGTH, /* longest row whose loss is, which keeps e' of the group */
    GROUPED_VJP_LENGTH = 128, /* longest row of a gradient whose sum is found in a group */
    GROUPED_SOFTMAX_LENGTH = 2048 / v32_W, /* longest row of softmax in a group: 8 KB of floats */
};
#if defined(CSM_NO_UNROLL) /* scalar: unrolling a group would make 128 copies of exp */
#define UNROLL
#elif defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 32")
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL
#endif
/* The sum of VECTORS vectors to lane[0], in the fixed tree of their lanes: i + n / 2, i + n / 4, ..., i + 1.  Bounds of
 * loops are constant, so that additions are vector instructions: one loop over halves took twice the time of all the
 * products of 64 floats. */
#define CSM_FOLD_VECTORS(sum, half) \
    UNROLL                          \
    for (int v = 0; v < (VECTORS > (half) ? (half) : 0); v++) (sum)[v] = V(add)((sum)[v], (sum)[v + (half)])
#define CSM_FOLD_LANES(lane, half) \
    UNROLL                         \
    for (int i = 0; i < (V(W) > (half) ? (half) : 0); i++) (lane)[i] = (lane)[i] + (lane)[i + (half)]
#define CSM_FOLD(sum, lane)            \
    do {                               \
        CSM_FOLD_VECTORS(sum, 8);      \
        CSM_FOLD_VECTORS(sum, 4);      \
        CSM_FOLD_VECTORS(sum, 2);      \
        CSM_FOLD_VECTORS(sum, 1);      \
        V(STORE_REAL)(lane, (sum)[0]); \
        CSM_FOLD_LANES(lane, 8);       \
        CSM_FOLD_LANES(lane, 4);       \
        CSM_FOLD_LANES(lane, 2);       \
        CSM_FOLD_LANES(lane, 1);       \
    } while (0)
/* Forces a variable to be computed here: GCC defers the sums of many vectors until it runs out of registers. */
#if defined(KEEP_IN_REGISTER) /* emulated vectors are not in registers */
#elif defined(__GNUC__) && defined(__AVX512F__)
#define KEEP_IN_REGISTER(v) __asm__ volatile("" : "+v"(v))
#elif defined(__GNUC__) && defined(__x86_64__)
#define KEEP_IN_REGISTER(v) __asm__ volatile("" : "+x"(v))
#elif defined(__GNUC__) && defined(__aarch64__)
#define KEEP_IN_REGISTER(v) __asm__ volatile("" : "+w"(v))
#else
#define KEEP_IN_REGISTER(v) ((void)(v))
#endif
/* Marks a loop that the compiler may vectorise: over integers, or over floats that are not added up across the loop, so
 * that lanes are independent.  It needs no OpenMP runtime. */
#if defined(_OPENMP) && !defined(_MSC_VER)
#define SIMD _Pragma("omp simd")
#else
#define SIMD
#endif

static const double csm_zeros[CSM_VJP_WIDTH]; /* lanes before the first class */

/* Prefetches eight classes ahead of class j of a tile; at the end of a tile, in the next one.  Hardware prefetchers
 * stop at page boundaries: (1000, 4096) axis 0, 0.88 -> 0.66 ns per element; into the next tile, gradients of (8, 21,
 * 512, 512) axis 1, 1.8 -> 1.4. */
INLINE void csm_prefetch_tile(const void *tile, ptrdiff_t step, size_t j, size_t n, size_t bytes) {
    enum { AHEAD = 8 };
    uintptr_t p = (uintptr_t)tile + (uintptr_t)step * (j + AHEAD);
    if (j + AHEAD >= n) {
        if (n < AHEAD) return;
        p += bytes - (uintptr_t)step * n;
    }
    for (size_t at = 0; at < bytes; at += 64) PREFETCH((const char *)(p + at));
}

#include "cross_entropy/row_groups.h"
#include "divergence/row_groups.h"
#include "entmax/solve.h"
#include "entmax/vjp.h"

#include "../math/single.inc.h"
#define v32_LOAD_REAL v32_load_f32
#define v32_LOAD_PART_REAL v32_load_part_f32
#define v32_STORE_REAL v32_store_f32
#define v32_STORE_PART_REAL v32_store_part_f32
#include "../math/exp.inc.h"
#include "../math/sum.inc.h"
#include "softmax/element.inc.h"
#include "topk/select.inc.h"
#include "sampled/logistic.inc.h"
#include "softcap/tanh.inc.h"
#define v32_TO_DOUBLE v32_widen
#include "sample/sample.inc.h"
#include "adversarial/climb.inc.h"

#define T float
#define STORED_AS_REAL 1
#define FN(name) name##_f32
#define LOAD v32_load_f32
#define LOAD_PART v32_load_part_f32
#define STORE v32_store_f32
#define STORE_PART v32_store_part_f32
#include "storage.inc.h"

#define T uint16_t
#define STORED_AS_REAL 0
#define FN(name) name##_f16
#define LOAD v32_load_f16
#define LOAD_PART v32_load_part_f16
#define STORE v32_store_f16
#define STORE_PART v32_store_part_f16
#include "storage.inc.h"

#define T uint16_t
#define STORED_AS_REAL 0
#define FN(name) name##_bf16
#define LOAD v32_load_bf16
#define LOAD_PART v32_load_part_bf16
#define STORE v32_store_bf16
#define STORE_PART v32_store_part_bf16
#include "storage.inc.h"

#undef KEY_MAX
#undef KEY_MIN
#undef REAL_MAX
#undef REAL_MIN
#undef SET_REAL
#undef HAS_NAN
#include "../math/double.inc.h"
#define v64_LOAD_REAL v64_load_f64
#define v64_LOAD_PART_REAL v64_load_part_f64
#define v64_STORE_REAL v64_store_f64
#define v64_STORE_PART_REAL v64_store_part_f64
#include "../math/exp.inc.h"
#include "../math/sum.inc.h"
#include "softmax/element.inc.h"
#include "topk/select.inc.h"
#include "sampled/logistic.inc.h"
#include "softcap/tanh.inc.h"
#define v64_TO_DOUBLE(from, to) ((to)[0] = (from))
#include "sample/sample.inc.h"
#include "adversarial/climb.inc.h"

#define T double
#define STORED_AS_REAL 1
#define FN(name) name##_f64
#define LOAD v64_load_f64
#define LOAD_PART v64_load_part_f64
#define STORE v64_store_f64
#define STORE_PART v64_store_part_f64
#include "storage.inc.h"

#include "topk/integer.inc.h"
#include "features/features.inc.h"
#include "tree/tree.inc.h"
#include "adversarial/adversarial.inc.h"
#include "geometric/geometric.inc.h"
#include "subsets/subsets.inc.h"
#include "rankings/rankings.inc.h"

#include "crf/crf.inc.h"
#include "crf/viterbi.inc.h"

#include "hashed/hashed.inc.h"
#include "int8/int8.inc.h"
#include "int8/coarse.inc.h"
#include "int8/nibbles.inc.h"

#define CSM_NAME_(name) #name
#define CSM_NAME(name) CSM_NAME_(name)
#define CSM_GLUE_(a, b) a##b
#define CSM_GLUE(a, b) CSM_GLUE_(a, b)

#define KERNELS(suffix, storage, compute, op, pass1, combine) \
    {op##_rows_##suffix,                                      \
     (csm_tile_kernel)op##_tile_##suffix,                     \
     pass1##_pass1_##suffix,                                  \
     combine##_combine_##suffix,                              \
     op##_pass2_##suffix,                                     \
     (csm_ragged_kernel)op##_ragged_##suffix,                 \
     (csm_ragged_tiles_kernel)op##_ragged_tiles_##suffix},
#define KERNELS_OF(op, signature, keeps_axis, pass1, combine) {CSM_DTYPES_WITH(KERNELS, op, pass1, combine)},
#define LOSS(suffix, storage, compute)                                                   \
    {loss_rows_##suffix, loss_pass1_##suffix, loss_sums_##suffix, loss_factors_##suffix, \
     loss_norm_##suffix, loss_pass2_##suffix, loss_mass_##suffix},
#define SOFTCAP(suffix, storage, compute) {softcap_cap_##suffix},
#define ENTMAX(suffix, storage, compute) {support_##suffix, spread_##suffix, entmax_vjp_##suffix},
#define DIVERGENCE(suffix, storage, compute) \
    {kl_rows_##suffix, kl_pass1_##suffix, kl_again_##suffix, kl_pass2_##suffix},
#define ROWS(suffix, storage, compute) {row_dots_##suffix, row_sums_##suffix, row_add_##suffix},
#define LOGISTIC_f32 {v32_logistic_row, v32_logistic_few, v32_logistic_clip}
#define LOGISTIC_f64 {v64_logistic_row, v64_logistic_few, v64_logistic_clip}
#define LOGISTIC(suffix, storage, compute) LOGISTIC_##compute,
#define CLIMB_f32 {v32_climb_numbers, v32_climb_begin, v32_climb_step, v32_climb_end}
#define CLIMB_f64 {v64_climb_numbers, v64_climb_begin, v64_climb_step, v64_climb_end}
#define CLIMB(suffix, storage, compute) CLIMB_##compute,
#define DRAW_f32                                                                \
    {v32_sample_keep,   v32_sample_divide, v32_sample_scale, v32_sample_filter, \
     v32_sample_moment, v32_sample_spread, v32_sample_ends}
#define DRAW_f64                                                                \
    {v64_sample_keep,   v64_sample_divide, v64_sample_scale, v64_sample_filter, \
     v64_sample_moment, v64_sample_spread, v64_sample_ends}
#define DRAW(suffix, storage, compute) DRAW_##compute,
#define SELECT(suffix, storage, compute) select_##suffix,
#define SOFTMAX_SUM(suffix, storage, compute) softmax_sum_##suffix,
#define MAX(suffix, storage, compute) max_##suffix,
#define WIDEN(suffix, storage, compute) widen_##suffix,
#define NARROW(suffix, storage, compute) narrow_##suffix,
#define OPTIMIZER(suffix, storage, compute)                                                                       \
    {optimizer_squares_##suffix, optimizer_descend_##suffix, optimizer_adagrad_##suffix, optimizer_adam_##suffix, \
     optimizer_decay_##suffix},

#ifndef CSM_NO_TABLE /* tests/c/exp_unit.c, which needs no kernel */
static const csm_table table = {
    CSM_NAME(CSM_UNIT),
    {CSM_OPS(KERNELS_OF)},
    {CSM_DTYPES(LOSS)},
    {CSM_DTYPES(ENTMAX)},
    {CSM_DTYPES(ROWS)},
    {CSM_DTYPES(LOGISTIC)},
    {CSM_DTYPES(DRAW)},
    {CSM_DTYPES(SELECT)},
    {select_i32, select_u32, select_i64, select_u64},
    {CSM_DTYPES(SOFTMAX_SUM)},
    {CSM_DTYPES(MAX)},
    {CSM_DTYPES(WIDEN)},
    {CSM_DTYPES(NARROW)},
    {feature_emissions, feature_gradient},
    {crf_load_f32, crf_store_f32, crf_store_f64, crf_add_f64, crf_split, crf_maxima, crf_exponentials, crf_forward,
     crf_backward, crf_tail, crf_pairs, crf_gradients, crf_viterbi, crf_trace},
    {CSM_DTYPES(OPTIMIZER)},
    {int8_dots, int8_dots_vnni, int8_reach, int8_bounds, int8_exact, int8_narrow, int8_narrow_dots, int8_test,
     int8_nibbles, int8_nibble_dots, int8_nibble_scan},
    {tree_terms, tree_sides},
    {hash_buckets, hash_scores, hash_scores_of_rows},
    {adversarial_gap, adversarial_reach, adversarial_norm},
    {CSM_DTYPES(CLIMB)},
    {geometric_dot, geometric_subtract, geometric_combine},
    {CSM_DTYPES(DIVERGENCE)},
    {subset_sigmoids, subset_logs, subset_step},
    {ranking_places, ranking_terms, ranking_side_by_side},
    {CSM_DTYPES(SOFTCAP)},
};
const csm_table *const CSM_GLUE(csm_table_, CSM_UNIT) = &table;
#endif
