/* Aligned memory. */
#ifndef CSM_CORE_MEMORY_H
#define CSM_CORE_MEMORY_H

#include <stddef.h>

enum { CSM_ALIGN = 64 }; /* bytes: a cache line, and the widest vector */
static inline size_t csm_rounded(size_t size) { return (size + CSM_ALIGN - 1) / CSM_ALIGN * CSM_ALIGN; }
void *csm_allocate(size_t size); /* aligned to CSM_ALIGN, or NULL */
void csm_release(void *);

#endif
