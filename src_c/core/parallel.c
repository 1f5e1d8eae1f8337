/* The only file with threads: OpenMP, the fork guard, interrupts.
 *
 * libgomp hangs when a process forks after a parallel region and the child enters one, so a child computes serially.
 * No setting of the process is changed, with one exception: a worker's affinity, while the worker is moved to another
 * CPU.  The thread count is a clause of the region.  Every thread saves its floating-point control word, sets the
 * default, and restores its own: OpenMP workers do not inherit a caller's flush-to-zero, so bits would otherwise depend
 * on the number of threads.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getcpu */
#endif
#include "parallel.h"

#include "extension.h"
#include "memory.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>
#ifndef _WIN32
#include <sched.h>
#endif
#ifdef __linux__
#include <stdio.h>
#include <unistd.h>
#endif

#ifdef _OPENMP
#include <omp.h>
int csm_openmp(void) { return _OPENMP; }
int csm_openmp_limit(void) { return omp_get_max_threads(); }
#else
int csm_openmp(void) { return 0; }
int csm_openmp_limit(void) { return 1; }
#endif
#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>
static atomic_int is_child;
static void in_child(void) { atomic_store(&is_child, 1); }
/* Runs when the library is loaded, not when it first computes: another library may use the same libgomp earlier. */
__attribute__((constructor)) static void install_guard(void) { pthread_atfork(NULL, NULL, in_child); }
static int may_start_threads(void) { return !atomic_load(&is_child) && !omp_in_parallel(); }
#elif defined(_OPENMP)
static int may_start_threads(void) { return !omp_in_parallel(); }
#else
static int may_start_threads(void) { return 0; }
#endif

enum {
    SERIAL_ELEMENTS = 32 * 1024, /* with fewer, starting threads costs more than it saves */
    THREAD_ELEMENTS = 16 * 1024  /* minimum for each thread */
};

int csm_threads_for(double elements, size_t units, int threads) {
    if (threads <= 1 || elements < SERIAL_ELEMENTS || units < 2) return 1;
    if (elements / THREAD_ELEMENTS < threads) threads = (int)(elements / THREAD_ELEMENTS);
    if (units < (size_t)threads) threads = (int)units;
    return threads > 1 && may_start_threads() ? threads : 1;
}

double csm_now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The time that the calling thread computes before it checks for an interrupt. */
#define INTERRUPT_SECONDS 0.03

/* Checks for an interrupt between two pieces; only the calling thread (0) does.  The clock continues over all regions
 * of a call. */
static void check_interrupt(csm_interrupt *interrupt, atomic_int *status) {
    double time = csm_now();
    if (interrupt->last == 0) interrupt->last = time;
    if (time - interrupt->last <= INTERRUPT_SECONDS && time >= interrupt->last) return;
    csm_fp_leave(interrupt->caller); /* the callback may run Python code */
    if (interrupt->check(interrupt->context)) atomic_store(status, CSM_INTERRUPTED);
    interrupt->caller = csm_fp_enter();
    interrupt->last = csm_now();
}

typedef struct region {
    csm_body body;
    void *context;
    csm_interrupt *interrupt;
    size_t piece;
    atomic_int status;
    /* Units since the last check for an interrupt.  Only the calling thread writes here. */
    _Alignas(CSM_ALIGN) size_t unchecked;
} region;

static int is_running(const region *r) { return atomic_load_explicit(&r->status, memory_order_relaxed) == CSM_OK; }

static void run_piece(region *r, size_t begin, size_t end, int thread) {
    csm_status result = r->body(r->context, begin, end, thread);
    if (result != CSM_OK) atomic_store(&r->status, result);
    if (thread != 0 || !r->interrupt->check) return;
    r->unchecked += end - begin;
    if (r->unchecked < r->piece) return; /* in a short call, reading the clock would cost as much as ten rows */
    check_interrupt(r->interrupt, &r->status);
    r->unchecked = 0;
}

#ifdef _OPENMP
/* Each thread has a share of the units, the same in every call of the same size, so that it finds its cache warm.  A
 * thread that finishes early steals pieces of the others' shares, so that no call waits for a thread that wakes up late
 * or whose CPU is busy with the threads of another library. */
enum { SHARES = 64, PIECES = 8 /* of a share */ };
typedef struct share {
    _Alignas(CSM_ALIGN) atomic_size_t next;
    size_t end;
} share;
typedef struct team {
    share shares[SHARES];
    size_t count, piece;
    int cpu; /* of the calling thread */
    atomic_int entered;
} team;

/* Number of units that a thread claims at once: at least an eighth of `piece`, so that the cost of claiming them is
 * negligible. */
static size_t piece_of_share(size_t units, size_t piece) {
    size_t wanted = units / PIECES > piece / 8 ? units / PIECES : piece / 8;
    if (wanted > piece) return piece;
    return wanted > 16 ? wanted / 16 * 16 /* kernels group short rows */ : wanted ? wanted : 1;
}

/* If Linux does not know which CPUs share a cache, as in many virtual machines, it may wake a worker on the CPU of
 * the calling thread although others are idle.  The two would then wait for each other for milliseconds: each spins in
 * turn in the barrier at the region's end until a clock interrupt.  Therefore threads with work yield until all threads
 * have entered the region.  A worker found on the caller's CPU removes that CPU from its affinity mask, so that it is
 * moved, and then restores the mask.  It does so only if the mask allowed every CPU before (so that the full mask has
 * the same meaning, even if CPUs are added), and not under a system call filter, which may kill the process for it. */
static int this_cpu(void) {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

#ifdef __linux__
/* Read each time: a filter may be installed at any time, and for one thread only. */
static int is_filtered(void) {
    char line[128];
    int mode = 2;
    FILE *status = fopen("/proc/thread-self/status", "re");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "Seccomp: %d", &mode) == 1) break;
    if (status) fclose(status);
    return mode != 0;
}
#endif

static void leave_cpu(int cpu) {
#ifdef __linux__
    static _Thread_local int is_pinned; /* remembered: asking again costs as much as a small call */
    cpu_set_t allowed;
    if (cpu < 0 || is_pinned || sched_getcpu() != cpu || is_filtered()) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    const int count = CPU_COUNT(&allowed);
    is_pinned = count < 2 || count != sysconf(_SC_NPROCESSORS_ONLN);
    if (is_pinned || count < omp_get_num_threads()) return;
    CPU_CLR(cpu, &allowed);
    if (sched_setaffinity(0, sizeof allowed, &allowed) != 0) return;
    memset(&allowed, 0xff, sizeof allowed);
    for (int i = 0; i < 3 && sched_setaffinity(0, sizeof allowed, &allowed) != 0; i++) {}
#else
    (void)cpu;
#endif
}

static void yield_until_entered(team *t, int times) {
#ifndef _WIN32
    const int threads = omp_get_num_threads();
    while (times-- > 0 && atomic_load_explicit(&t->entered, memory_order_relaxed) < threads) sched_yield();
#else
    (void)t, (void)times;
#endif
}

static void run_shares(region *r, team *t, int thread) {
    for (size_t i = 0, done = 0; i < t->count; i++) {
        share *s = &t->shares[((size_t)thread + i) % t->count];
        while (atomic_load_explicit(&s->next, memory_order_relaxed) < s->end && is_running(r)) {
            size_t begin = atomic_fetch_add_explicit(&s->next, t->piece, memory_order_relaxed);
            if (begin >= s->end) break;
            run_piece(r, begin, s->end - begin > t->piece ? begin + t->piece : s->end, thread);
            if (done++ == 0) yield_until_entered(t, 1);
        }
    }
}

static void run_parallel(region *r, size_t units, int threads) {
    team t;
    t.count = threads < SHARES ? (size_t)threads : SHARES;
    const size_t each = units / t.count, rest = units % t.count;
    for (size_t i = 0, next = 0; i < t.count; i++) {
        atomic_init(&t.shares[i].next, next);
        t.shares[i].end = next += each + (i < rest);
    }
    t.piece = piece_of_share(each, r->piece);
    t.cpu = this_cpu();
    atomic_init(&t.entered, 0);
#pragma omp parallel num_threads(threads)
    {
        atomic_fetch_add_explicit(&t.entered, 1, memory_order_relaxed);
        const int thread = omp_get_thread_num();
        if (thread != 0) leave_cpu(t.cpu);
        csm_fp_environment saved = csm_fp_enter(); /* a worker does not inherit the caller's environment */
        run_shares(r, &t, thread);
        csm_fp_leave(saved);
        yield_until_entered(&t, 1000);
    }
}
#endif

csm_status csm_parallel(size_t units, size_t piece, int threads, csm_body body, void *context,
                        csm_interrupt *interrupt) {
    region r = {.body = body, .context = context, .interrupt = interrupt, .piece = piece ? piece : 1};
#ifdef _OPENMP
    if (threads > 1) run_parallel(&r, units, threads);
    else
#else
    (void)threads;
#endif
        for (size_t begin = 0; begin < units && is_running(&r); begin += r.piece)
            run_piece(&r, begin, units - begin > r.piece ? begin + r.piece : units, 0);
    if (interrupt->last != 0 && is_running(&r)) check_interrupt(interrupt, &r.status); /* this region is one of many */
    return (csm_status)atomic_load(&r.status);
}
