/* Allocation: the only file that calls malloc. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "memory.h"

#include <stdlib.h>

void *csm_allocate(size_t size) {
    void *memory = NULL;
#if defined(_WIN32)
    memory = _aligned_malloc(size, CSM_ALIGN);
#else
    if (posix_memalign(&memory, CSM_ALIGN, size)) memory = NULL;
#endif
    return memory;
}
void csm_release(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}
