/* The table of kernels that a unit (isa/NAME.c) fills. */
#ifndef CSM_KERNEL_TABLE_H
#define CSM_KERNEL_TABLE_H

#include "../registry.h"
#include "adversarial/job.h"
#include "crf/job.h"
#include "cross_entropy/job.h"
#include "divergence/job.h"
#include "entmax/job.h"
#include "features/job.h"
#include "geometric/job.h"
#include "hashed/job.h"
#include "int8/job.h"
#include "rankings/job.h"
#include "row_optimizer/job.h"
#include "sample/job.h"
#include "sampled/job.h"
#include "softcap/job.h"
#include "softmax/job.h"
#include "subsets/job.h"
#include "topk/job.h"
#include "tree/job.h"

typedef struct csm_table {
    const char *name;
    csm_kernels kernels[CSM_OP_COUNT][CSM_DTYPE_COUNT];
    csm_loss_kernels loss[CSM_DTYPE_COUNT];
    csm_entmax_kernels entmax[CSM_DTYPE_COUNT];
    csm_row_kernels rows[CSM_DTYPE_COUNT];
    csm_logistic_kernels logistic[CSM_DTYPE_COUNT]; /* of the compute type */
    csm_sample_kernels sample[CSM_DTYPE_COUNT];     /* the same */
    /* Finds the indices of the k best of n, 0 < k <= n, for s->index; best first if `sorted`. */
    void (*select[CSM_DTYPE_COUNT])(const void *x, size_t n, size_t k, int smallest, int sorted, csm_select *s);
    /* The same for int32_t, uint32_t, int64_t and uint64_t. */
    void (*select_integer[4])(const void *x, size_t n, size_t k, int smallest, int sorted, csm_select *s);
    /* pass1 of softmax for a known block->max, without e' */
    void (*softmax_sum[CSM_DTYPE_COUNT])(const void *x, size_t n, const csm_temperature *, csm_block *block);
    double (*max[CSM_DTYPE_COUNT])(const void *x, size_t n);
    /* storage -> compute type and back; NaN becomes canonical */
    void (*widen[CSM_DTYPE_COUNT])(const void *x, void *y, size_t n);
    void (*narrow[CSM_DTYPE_COUNT])(const void *x, void *y, size_t n);
    csm_feature_kernels features;
    csm_crf_kernels crf;
    csm_optimizer_kernels optimizer[CSM_DTYPE_COUNT];
    csm_int8_kernels int8;
    csm_tree_kernels tree;
    csm_hash_kernels hash;
    csm_adversarial_kernels adversarial;
    csm_climb_kernels climb[CSM_DTYPE_COUNT]; /* of the compute type */
    csm_geometric_kernels geometric;
    csm_kl_kernels divergence[CSM_DTYPE_COUNT];
    csm_subset_kernels subsets;
    csm_ranking_kernels rankings;
    csm_softcap_kernels softcap[CSM_DTYPE_COUNT];
} csm_table;

/* One exported symbol per unit; NULL if the unit was built without its instruction set. */
#define CSM_ISA_TABLE(name, bits) extern const csm_table *const csm_table_##name;
CSM_ISAS(CSM_ISA_TABLE)
#undef CSM_ISA_TABLE

#endif
