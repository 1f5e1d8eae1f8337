/* Reuse of the memory of large results.
 *
 * A new array of 50 MB costs more than the softmax that fills it: the system has to find its pages, clear and map them,
 * and reclaim them when the array is freed.  So the memory of the last few large results is kept, marked as reclaimable
 * (MADV_FREE): the system may take the pages whenever it needs them, and until then they are reused at no cost.  Linux
 * counts them as used by the process until it reclaims them.
 *
 * Only Linux; elsewhere NumPy allocates, as it does for everything smaller than CSM_LARGE.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* madvise */
#endif
#include "pages.h"

#ifdef __linux__
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#endif

#if defined(__linux__) && defined(MADV_FREE)
enum {
    PLACES = 16, /* the smallest results that the default limit, 512 MB, has room for */
    HUGE = 2 << 20 /* a huge page: sizes are multiples of it, so that none is split */
};
static struct {
    void *memory;
    size_t size;
} kept[PLACES]; /* the latest first; empty places come last */
static atomic_size_t limit, total; /* also read without the lock */

/* Held during every change of `kept`: a free-threaded Python has no lock around the calls.  No Python code runs while
 * it is held.  A fork waits for it, so that the child does not inherit it locked. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void acquire(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }
__attribute__((constructor)) static void lock_over_forks(void) { pthread_atfork(acquire, release, release); }

enum { NUMPYS = 389047 /* the domain of numpy's arrays, numpy.lib.tracemalloc_domain */ };
static int (*track)(unsigned, uintptr_t, size_t);
static int (*untrack)(unsigned, uintptr_t);

static size_t rounded(size_t size) { return (size + HUGE - 1) / HUGE * HUGE; }

static void remove_place(int i) {
    total -= kept[i].size;
    memmove(kept + i, kept + i + 1, sizeof kept[0] * (size_t)(PLACES - 1 - i));
    kept[PLACES - 1].memory = NULL;
    kept[PLACES - 1].size = 0;
}

/* Unmaps the oldest until at most `max_bytes` bytes in `places` places are kept. */
static void make_room(size_t max_bytes, int places) {
    for (int i = PLACES - 1; i >= 0; i--) {
        if (!kept[i].memory || (total <= max_bytes && i < places)) continue;
        munmap(kept[i].memory, kept[i].size);
        remove_place(i);
    }
}

static void *map(size_t size) {
    char *memory = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    const size_t before = (size_t)(-(uintptr_t)memory % HUGE);
    if (before) munmap(memory, before);
    munmap(memory + before + size, HUGE - before);
#ifdef MADV_HUGEPAGE
    (void)madvise(memory + before, size, MADV_HUGEPAGE); /* where the system has them */
#endif
    return memory + before;
}

int csm_fits_kept_pages(size_t size) { return size >= CSM_LARGE && size <= limit; }
size_t csm_kept_pages(void) { return total; }

void csm_set_pages_limit(size_t bytes) {
    acquire();
    limit = bytes;
    make_room(bytes, PLACES);
    release();
}

void csm_set_tracemalloc(uintptr_t new_track, uintptr_t new_untrack) {
    track = (int (*)(unsigned, uintptr_t, size_t))new_track;
    untrack = (int (*)(unsigned, uintptr_t))new_untrack;
}

static void *take(size_t size) {
    for (int i = 0; i < PLACES; i++) {
        if (!kept[i].memory || kept[i].size != size) continue;
        void *memory = kept[i].memory;
        remove_place(i);
        return memory;
    }
    void *memory = map(size);
    if (memory || total == 0) return memory;
    make_room(0, 0); /* the address space may be limited */
    return map(size);
}

void *csm_take_pages(size_t size) {
    if (size > PTRDIFF_MAX - 2 * (size_t)HUGE) return NULL;
    acquire();
    void *memory = take(rounded(size));
    release();
    if (memory && track) (void)track(NUMPYS, (uintptr_t)memory, size);
    return memory;
}

void csm_give_pages(void *memory, size_t size) {
    if (untrack) (void)untrack(NUMPYS, (uintptr_t)memory);
    size = rounded(size);
    acquire();
    const int keeps = size <= limit && madvise(memory, size, MADV_FREE) == 0;
    if (keeps) {
        make_room(limit - size, PLACES - 1);
        memmove(kept + 1, kept, sizeof kept[0] * (PLACES - 1));
        kept[0].memory = memory;
        kept[0].size = size;
        total += size;
    }
    release();
    if (!keeps) munmap(memory, size);
}
#else
int csm_fits_kept_pages(size_t size) { return (void)size, 0; }
size_t csm_kept_pages(void) { return 0; }
void csm_set_pages_limit(size_t bytes) { (void)bytes; }
void csm_set_tracemalloc(uintptr_t track, uintptr_t untrack) { (void)track, (void)untrack; }
void *csm_take_pages(size_t size) {
    (void)size;
    return NULL;
}
void csm_give_pages(void *memory, size_t size) { (void)memory, (void)size; }
#endif
