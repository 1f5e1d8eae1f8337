/* Memory of large results, which is used again (pages.c). */
#ifndef CSM_PAGES_H
#define CSM_PAGES_H

#include <stddef.h>
#include <stdint.h>

/* Results of so many bytes lie in it: malloc maps and unmaps those each time (glibc: its largest threshold). */
enum { CSM_LARGE = 32 << 20 };

int csm_keeps_pages(size_t size); /* whether a result of so many bytes should lie there */
void csm_set_pages_limit(size_t bytes); /* how much is kept at most, and gives back the rest */
size_t csm_kept_pages(void); /* bytes kept now */
/* Addresses of Python's functions by which tracemalloc knows what others allocate. */
void csm_set_tracemalloc(uintptr_t track, uintptr_t untrack);
/* Any thread may call these.  NULL: no memory.  What is in it is arbitrary. */
void *csm_take_pages(size_t size);
void csm_give_pages(void *memory, size_t size);

#endif
