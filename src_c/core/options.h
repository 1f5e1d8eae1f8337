/* The options of a call, whose structure was shorter when its caller was compiled. */
#ifndef CSM_CORE_OPTIONS_H
#define CSM_CORE_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* `given`, or where it is NULL or ends before `size` bytes, `known`: its defaults, replaced by the options that are
 * given.  Every structure of options begins with its size. */
static inline void *csm_known_options(void *known, size_t size, const void *given) {
    size_t given_size = 0;
    if (given) memcpy(&given_size, given, sizeof given_size);
    if (given_size >= size) return (void *)(uintptr_t)given;
    if (given) memcpy(known, given, given_size);
    return known;
}

#endif
