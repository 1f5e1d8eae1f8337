/* Texts of the status codes. */
#include "../../csoftmax/include/csoftmax.h"

const char *csm_status_text(csm_status status) {
    switch (status) {
    case CSM_OK: return "ok";
    case CSM_NO_MEMORY: return "out of memory";
    case CSM_INTERRUPTED: return "interrupted";
    case CSM_BAD_SHAPE: return "too many axes, or more bytes than PTRDIFF_MAX";
    case CSM_BAD_TEMPERATURE: return "temperature is negative or NaN, or not positive and finite in a gradient";
    case CSM_SMALL_SCRATCH: return "scratch is smaller than csm_scratch_size()";
    case CSM_BAD_LABEL: return "a label is not a class, or a soft label is negative or not finite";
    case CSM_BAD_OPTION: return "an option is outside its range, or contradicts another";
    case CSM_NO_MASS: return "a row to draw from holds NaN or +inf, or only -inf";
    case CSM_TOO_FEW: return "a row has fewer classes than draws without replacement";
    }
    return "unknown status";
}
