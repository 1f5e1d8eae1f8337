/* Targets of XLA's foreign function interface (xla.c); each returns NULL, or XLA's own error object. */
#ifndef CSM_XLA_H
#define CSM_XLA_H

typedef struct xla_frame xla_frame;
void *csm_xla_softmax(xla_frame *);
void *csm_xla_log_softmax(xla_frame *);
void *csm_xla_logsumexp(xla_frame *);
void *csm_xla_softmax_vjp(xla_frame *);
void *csm_xla_log_softmax_vjp(xla_frame *);
void *csm_xla_entmax(xla_frame *);
void *csm_xla_entmax_vjp(xla_frame *);
void *csm_xla_cross_entropy(xla_frame *);

#endif
