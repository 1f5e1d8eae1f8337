/* The float32 exp core of one unit, made callable: compiled once for each instruction set with that unit's flags and
 * -DEXP_UNIT=name, -DEXP_SOURCE="its source".  e^x = P 2^n; P is what the kernels compute with the scale 2^0. */
#define CSM_NO_TABLE /* and no kernels */
#include EXP_SOURCE
#include "exp_unit.h"

#define EXP_CAT_(a, b) a##b
#define EXP_CAT(a, b) EXP_CAT_(a, b)

void EXP_CAT(exp_unit_, EXP_UNIT)(const float *x, float *p, float *n, size_t count) {
    const csm_temperature ordinary = {.t = 1};
    for (size_t i = 0; i < count; i += v32_W) {
        v32_t z = v32_load_f32(x + i), at;
        v32_shift s = v32_shift_to(z, &ordinary, 0, &at);
        s = v32_shift_by(v32_sub(v32_set(127), at), &ordinary, 0); /* n0 of each element, B = 0: the scale is 1 */
        s.lowest = v32_set(-CSM_INF);
        v32_store_f32(p + i, v32_exp_value(z, s, 0));
        v32_store_f32(n + i, at);
    }
}
