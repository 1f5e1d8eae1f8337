/* The scalar unit: every kernel in plain C.  It is the specification; the other units equal it bit for bit. */
#define CSM_UNIT scalar
#define CSM_NO_UNROLL
#include "../vec/scalar.h"
#include "../kernel/unit.inc.h"
