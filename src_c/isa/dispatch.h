/* The instruction sets of this CPU. */
#ifndef CSM_ISA_DISPATCH_H
#define CSM_ISA_DISPATCH_H

#include "../core/extension.h"

unsigned csm_cpu_features(void); /* bits of CSM_CPU_... */

/* How much a call should prefetch if it reads and writes this many bytes. */
csm_prefetch csm_prefetch_for(double bytes);
/* The table of the unit with vectors half as wide, if there is one and it is built, else the same: for tiles that fill
 * half a vector.  Its bits are the same. */
const csm_table *csm_half_table(const csm_table *);

#endif
