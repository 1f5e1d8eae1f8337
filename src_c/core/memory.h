/* Aligned memory. */
#ifndef CSM_CORE_MEMORY_H
#define CSM_CORE_MEMORY_H

#include <stddef.h>

enum { CSM_ALIGN = 64 }; /* bytes: a cache line, and the widest vector */
static inline size_t csm_rounded(size_t size) { return (size + CSM_ALIGN - 1) / CSM_ALIGN * CSM_ALIGN; }
void *csm_allocate(size_t size); /* aligned to CSM_ALIGN, or NULL */
/* The same, in huge pages from 2 MB on where the system has them: page faults of 4 MB, which a call writes once, take
 * 1.5 ms otherwise whenever malloc has given the pages back. */
void *csm_allocate_huge(size_t size);
void csm_release(void *);

#endif
