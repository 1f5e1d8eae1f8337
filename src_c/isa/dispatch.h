/* The instruction sets of this CPU. */
#ifndef CSM_ISA_DISPATCH_H
#define CSM_ISA_DISPATCH_H

#include "../core/extension.h"

unsigned csm_cpu_features(void); /* bits of CSM_CPU_... */

/* How much a call should prefetch if it reads and writes this many bytes. */
csm_prefetch csm_prefetch_for(double bytes);

#endif
