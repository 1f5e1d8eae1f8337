/* Allocation: the only file that calls malloc. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* madvise */
#endif
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* From this size on, malloc maps and unmaps the memory alone.  It gets huge pages where the system has them: the pages
 * of 2 GB take 0.2 s to give back otherwise, and as long to get. */
enum { HUGE_BYTES = 64 << 20, PAGE_BYTES = 4096, HUGE_PAGE_BYTES = 2 << 20 };
static void ask_for_huge_pages(void *memory, size_t size, size_t from) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const size_t before = (size_t)(-(uintptr_t)memory % PAGE_BYTES);
    if (memory && size >= from)
        (void)madvise((char *)memory + before, (size - before) / PAGE_BYTES * PAGE_BYTES, MADV_HUGEPAGE);
#else
    (void)memory, (void)size, (void)from;
#endif
}

static void *allocate_aligned(size_t size, size_t alignment) {
    void *memory = NULL;
#if defined(_WIN32)
    memory = _aligned_malloc(size, alignment);
#else
    if (posix_memalign(&memory, alignment, size)) memory = NULL;
#endif
    return memory;
}

void *csm_allocate(size_t size) {
    void *memory = allocate_aligned(size, CSM_ALIGN);
    ask_for_huge_pages(memory, size, HUGE_BYTES);
    return memory;
}
void *csm_allocate_huge(size_t size) {
    if (size < HUGE_PAGE_BYTES) return csm_allocate(size);
    void *memory = allocate_aligned(size, HUGE_PAGE_BYTES);
    ask_for_huge_pages(memory, size, HUGE_PAGE_BYTES);
    return memory;
}
void csm_release(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}
