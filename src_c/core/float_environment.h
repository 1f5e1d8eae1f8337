/* The floating-point environment in which calls run. */
#ifndef CSM_CORE_FLOAT_ENVIRONMENT_H
#define CSM_CORE_FLOAT_ENVIRONMENT_H

#include <stdint.h>

typedef struct csm_fp_environment {
    uint64_t control, status;
} csm_fp_environment;

/* Sets the default environment for the calling thread and returns the previous one, which csm_fp_leave restores.
 * Whole calls run in the default environment: constants, and results computed between parallel regions, must not depend
 * on the caller's rounding mode or flush-to-zero. */
csm_fp_environment csm_fp_enter(void);
void csm_fp_leave(csm_fp_environment);

#endif
