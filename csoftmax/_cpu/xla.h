/* Targets of XLA's foreign function interface (xla.c); each returns NULL, or XLA's own error object. */
#ifndef CSM_XLA_H
#define CSM_XLA_H

#include "registry.h"

typedef struct xla_frame xla_frame;
#define CSM_XLA_TARGET(name, ...)      \
    void *csm_xla_##name(xla_frame *); \
    void *csm_xla_segment_##name(xla_frame *);
CSM_OPS(CSM_XLA_TARGET)
#undef CSM_XLA_TARGET
void *csm_xla_entmax(xla_frame *);
void *csm_xla_entmax_vjp(xla_frame *);
void *csm_xla_cross_entropy(xla_frame *);
void *csm_xla_kl_divergence(xla_frame *);
void *csm_xla_segment_cross_entropy(xla_frame *);
void *csm_xla_crf(xla_frame *);
void *csm_xla_crf_vjp(xla_frame *);
void *csm_xla_shard(xla_frame *); /* xla_shards.c */
void *csm_xla_merge_shards(xla_frame *);
void *csm_xla_finish_shard(xla_frame *);

#endif
