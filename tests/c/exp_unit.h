#ifndef CSM_TEST_EXP_UNIT_H
#define CSM_TEST_EXP_UNIT_H

#include <stddef.h>

/* count is a multiple of 16 */
void exp_unit_scalar(const float *x, float *p, float *n, size_t count);
void exp_unit_neon(const float *x, float *p, float *n, size_t count);
void exp_unit_avx2(const float *x, float *p, float *n, size_t count);
void exp_unit_avx512(const float *x, float *p, float *n, size_t count);

#endif
