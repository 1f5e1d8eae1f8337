#include "segments.h"
#include "../core/extension.h"
#define CROSS_ENTROPY(suffix, storage, compute)                                                                \
    csm_status csm_segment_cross_entropy_##suffix(const csm_shape *shape, const csm_segments *segments, const csm_view *x, const csm_view *gradient, \
                                          double *loss, csm_loss_options *o) {                                 \
        (void)shape; (void)segments; (void)x; (void)gradient; (void)loss; (void)o; return CSM_BAD_OPTION; \
    }
CSM_DTYPES(CROSS_ENTROPY)
