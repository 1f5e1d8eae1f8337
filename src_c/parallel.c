/* The only file with threads: OpenMP, the fork guard, the floating-point environment, interrupts.
 *
 * libgomp hangs when a process forks after a parallel region and the child enters one; the child is therefore
 * serial from then on.  Nothing here changes a setting of the process: the thread count is a clause of the region,
 * and every thread that computes saves its floating-point control word, sets the default (so that a caller's
 * flush-to-zero, which OpenMP workers do not inherit, cannot make bits depend on threads) and puts it back.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "internal.h"

#include <stdatomic.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
int csm_openmp(void) { return _OPENMP; }
int csm_openmp_limit(void) { return omp_get_max_threads(); }
#else
int csm_openmp(void) { return 0; }
int csm_openmp_limit(void) { return 1; }
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
csm_fp_environment csm_fp_enter(void) {
    csm_fp_environment saved = {_mm_getcsr(), 0};
    _mm_setcsr(0x1f80); /* round to nearest, all exceptions masked, no flush-to-zero */
    return saved;
}
void csm_fp_leave(csm_fp_environment saved) { _mm_setcsr((unsigned)saved.control); }
#elif defined(__aarch64__)
csm_fp_environment csm_fp_enter(void) {
    csm_fp_environment saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved.control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(saved.status));
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    return saved;
}
void csm_fp_leave(csm_fp_environment saved) {
    __asm__ volatile("msr fpcr, %0" ::"r"(saved.control));
    __asm__ volatile("msr fpsr, %0" ::"r"(saved.status));
}
#else
csm_fp_environment csm_fp_enter(void) {
    csm_fp_environment none = {0, 0};
    return none;
}
void csm_fp_leave(csm_fp_environment saved) { (void)saved; }
#endif

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>
static atomic_int is_child;
static pthread_once_t guard_once = PTHREAD_ONCE_INIT;
static void in_child(void) { atomic_store(&is_child, 1); }
static void install_guard(void) { pthread_atfork(NULL, NULL, in_child); }
static int may_start_threads(void) {
    pthread_once(&guard_once, install_guard);
    return !atomic_load(&is_child) && !omp_in_parallel();
}
#elif defined(_OPENMP)
static int may_start_threads(void) { return !omp_in_parallel(); }
#else
static int may_start_threads(void) { return 0; }
#endif

/* Below SERIAL elements starting threads costs more than it saves; each thread wants EACH. */
enum { SERIAL = 32 * 1024, EACH = 16 * 1024 };

int csm_threads_for(double elements, size_t units, int threads) {
    if (threads <= 1 || elements < SERIAL || units < 2) return 1;
    if (elements / EACH < threads) threads = (int)(elements / EACH);
    if (units < (size_t)threads) threads = (int)units;
    return threads > 1 && may_start_threads() ? threads : 1;
}

double csm_now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* How long the calling thread computes before it looks for an interrupt. */
#define INTERRUPT_SECONDS 0.03

/* The calling thread (0) looks for an interrupt between two pieces; the clock runs on over the regions of a call. */
static void look_for_interrupt(csm_interrupt *interrupt, atomic_int *status) {
    double time = csm_now();
    if (interrupt->last == 0) interrupt->last = time;
    if (time - interrupt->last <= INTERRUPT_SECONDS && time >= interrupt->last) return;
    csm_fp_leave(interrupt->caller); /* Python code may run in there */
    if (interrupt->check(interrupt->context)) atomic_store(status, CSM_INTERRUPTED);
    interrupt->caller = csm_fp_enter();
    interrupt->last = csm_now();
}

static void run_range(size_t begin, size_t end, size_t piece, int thread, csm_body body, void *context,
                      csm_interrupt *interrupt, atomic_int *status) {
    while (begin < end && atomic_load_explicit(status, memory_order_relaxed) == CSM_OK) {
        size_t stop = end - begin > piece ? begin + piece : end;
        csm_status result = body(context, begin, stop, thread);
        if (result != CSM_OK) atomic_store(status, result);
        begin = stop;
        /* not after the only piece of a short call: the clock costs as much as ten rows */
        if (thread == 0 && interrupt->check && (begin < end || interrupt->last != 0))
            look_for_interrupt(interrupt, status);
    }
}

csm_status csm_parallel(size_t units, size_t piece, int threads, csm_body body, void *context,
                        csm_interrupt *interrupt) {
    atomic_int status = CSM_OK;
    if (piece == 0) piece = 1;
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            size_t team = (size_t)omp_get_num_threads(), me = (size_t)omp_get_thread_num();
            size_t each = units / team, rest = units % team;
            size_t begin = me * each + (me < rest ? me : rest);
            csm_fp_environment saved = csm_fp_enter(); /* workers do not inherit the caller's */
            run_range(begin, begin + each + (me < rest), piece, (int)me, body, context, interrupt, &status);
            csm_fp_leave(saved);
        }
        return (csm_status)atomic_load(&status);
    }
#endif
    (void)threads;
    run_range(0, units, piece, 0, body, context, interrupt, &status);
    return (csm_status)atomic_load(&status);
}
