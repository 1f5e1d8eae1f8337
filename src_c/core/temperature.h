/* Constants of a temperature, and the transformation of rows outside its ordinary range. */
#ifndef CSM_CORE_TEMPERATURE_H
#define CSM_CORE_TEMPERATURE_H

#include "../math/temperature.h"

/* Transforms k numbers of the compute type in place, as ops/softmax_row.c describes.  max: the maximum of their row. */
void csm_transform(const csm_scales *, int single, void *wide, size_t k, double max);

#endif
