/* Constants of a temperature, and the transformation of rows outside its ordinary range. */
#ifndef CSM_CORE_TEMPERATURE_H
#define CSM_CORE_TEMPERATURE_H

#include "../math/temperature.h"

/* Transforms k numbers of the compute type in place, as ops/softmax_row.c describes.  max: the maximum of their row. */
void csm_transform(const csm_scales *, int single, void *wide, size_t k, double max);

/* Whether rows that are not transformed need no more than the constants of csm_set_ordinary, for every dtype. */
static inline int csm_is_usual_temperature(double t, int is_gradient) {
    return t >= (is_gradient ? 0.25 : 0x1p-60) && t <= 0x1p60;
}
/* How many of the first numbers are equal. */
static inline size_t csm_count_same(const double *numbers, size_t count) {
    size_t same = 1;
    while (same < count && numbers[same] == numbers[0]) same++;
    return same;
}
/* These constants, for several usual temperatures at once: the divisions overlap. */
void csm_set_ordinary(csm_temperature *, const double *temperatures, size_t count, int single);

#endif
