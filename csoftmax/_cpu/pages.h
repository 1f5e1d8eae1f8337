/* Reuse of the memory of large results (pages.c). */
#ifndef CSM_PAGES_H
#define CSM_PAGES_H

#include <stddef.h>
#include <stdint.h>

/* Results of at least this many bytes use kept memory: malloc would map and unmap them each time (glibc: its largest
 * threshold). */
enum { CSM_LARGE = 32 << 20 };

int csm_fits_kept_pages(size_t size); /* whether a result of this many bytes should use kept memory */
void csm_set_pages_limit(size_t bytes); /* sets the upper bound on kept memory, and unmaps the excess */
size_t csm_kept_pages(void); /* bytes that are currently kept */
/* Sets the addresses of the Python functions that report foreign allocations to tracemalloc. */
void csm_set_tracemalloc(uintptr_t track, uintptr_t untrack);
/* Any thread may call these.  NULL: no memory.  The contents of the memory are arbitrary. */
void *csm_take_pages(size_t size);
void csm_give_pages(void *memory, size_t size);

#endif
