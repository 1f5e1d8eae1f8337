/* Scratch of a selection of the k best of n numbers. */
#ifndef CSM_CORE_SELECTION_H
#define CSM_CORE_SELECTION_H

#include "../kernel/topk/job.h"

size_t csm_select_size(size_t n, size_t k, size_t wide_size);
csm_select csm_select_at(char *memory, size_t n, size_t k, size_t wide_size, csm_poll);

#endif
