/* Reading class labels of any integer type. */
#ifndef CSM_CORE_LABELS_H
#define CSM_CORE_LABELS_H

#include "../../csoftmax/include/csoftmax.h"

/* Copies the labels of all rows, in C order, and checks the copy, which alone is used afterwards; an ignored row gets
 * -1.  CSM_BAD_LABEL: o->position is the index of the row. */
csm_status csm_read_labels(const csm_shape *, csm_loss_options *o, size_t rows, int64_t *labels);

#endif
