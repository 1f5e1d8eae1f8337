/* The only file with threads: OpenMP, the fork guard, the floating-point environment, interrupts.
 *
 * libgomp hangs when a process forks after a parallel region and the child enters one; the child is therefore
 * serial from then on.  Nothing here changes a setting of the process (a worker's affinity, for as long as its move to
 * another CPU takes, is the exception): the thread count is a clause of the region, and every thread that computes
 * saves its floating-point control word, sets the default (so that a caller's flush-to-zero, which OpenMP workers do
 * not inherit, cannot make bits depend on threads) and puts it back.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getcpu */
#endif
#include "internal.h"

#include <stdatomic.h>
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
static void in_child(void) { atomic_store(&is_child, 1); }
/* When the library is loaded, not when it first computes: another library may have used the same libgomp before. */
__attribute__((constructor)) static void install_guard(void) { pthread_atfork(NULL, NULL, in_child); }
static int may_start_threads(void) { return !atomic_load(&is_child) && !omp_in_parallel(); }
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

typedef struct region {
    csm_body body;
    void *context;
    csm_interrupt *interrupt;
    size_t piece;
    atomic_int status;
    /* Units since the calling thread, the only one that writes here, looked for an interrupt. */
    _Alignas(CSM_ALIGN) size_t unseen;
} region;

static int goes_on(const region *r) { return atomic_load_explicit(&r->status, memory_order_relaxed) == CSM_OK; }

static void run_piece(region *r, size_t begin, size_t end, int thread) {
    csm_status result = r->body(r->context, begin, end, thread);
    if (result != CSM_OK) atomic_store(&r->status, result);
    if (thread != 0 || !r->interrupt->check) return;
    r->unseen += end - begin;
    if (r->unseen < r->piece) return; /* in a short call the clock would cost as much as ten rows */
    look_for_interrupt(r->interrupt, &r->status);
    r->unseen = 0;
}

#ifdef _OPENMP
/* Each thread has a share of the units, the same in every call of the same size: what it has in its cache it finds
 * again.  Who has finished his own takes pieces of the others' shares, so that a call does not wait for a thread that
 * wakes up late or whose CPU is busy with another library's. */
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

/* At least an eighth of `piece`, so that the dealing out costs nothing beside the work. */
static size_t piece_of_share(size_t units, size_t piece) {
    size_t wanted = units / PIECES > piece / 8 ? units / PIECES : piece / 8;
    if (wanted > piece) return piece;
    return wanted > 16 ? wanted / 16 * 16 /* kernels take short rows in groups */ : wanted ? wanted : 1;
}

/* Where Linux does not know which CPUs share a cache, as in many virtual machines, it may wake a worker on the CPU of
 * the thread that calls it, though others are idle.  The two would wait for each other for milliseconds: each spins in
 * turn in the barrier at the region's end until a clock interrupt.  So those who have work give way to those who have
 * not been in yet, and a worker that finds itself on the caller's CPU goes elsewhere: it is forbidden that CPU and,
 * once it has been moved, allowed all of them again.  Only where it was allowed all of them before, which then says the
 * same, whatever CPUs come later; and not under a system call filter, which may end the process for asking. */
static int this_cpu(void) {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

#ifdef __linux__
/* Read anew each time: a filter may come at any time, and to one thread only. */
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
    static _Thread_local int stays; /* it may not be moved: not asked again, which would cost as much as a small call */
    cpu_set_t allowed;
    if (cpu < 0 || stays || sched_getcpu() != cpu || is_filtered()) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    const int count = CPU_COUNT(&allowed);
    stays = count < 2 || count != sysconf(_SC_NPROCESSORS_ONLN);
    if (stays || count < omp_get_num_threads()) return;
    CPU_CLR(cpu, &allowed);
    if (sched_setaffinity(0, sizeof allowed, &allowed) != 0) return;
    memset(&allowed, 0xff, sizeof allowed);
    for (int i = 0; i < 3 && sched_setaffinity(0, sizeof allowed, &allowed) != 0; i++) {}
#else
    (void)cpu;
#endif
}

static void give_way(team *t, int times) {
#ifndef _WIN32
    const int all = omp_get_num_threads();
    while (times-- > 0 && atomic_load_explicit(&t->entered, memory_order_relaxed) < all) sched_yield();
#else
    (void)t, (void)times;
#endif
}

static void run_shares(region *r, team *t, int thread) {
    for (size_t i = 0, done = 0; i < t->count; i++) {
        share *s = &t->shares[((size_t)thread + i) % t->count];
        while (atomic_load_explicit(&s->next, memory_order_relaxed) < s->end && goes_on(r)) {
            size_t begin = atomic_fetch_add_explicit(&s->next, t->piece, memory_order_relaxed);
            if (begin >= s->end) break;
            run_piece(r, begin, s->end - begin > t->piece ? begin + t->piece : s->end, thread);
            if (done++ == 0) give_way(t, 1);
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
        csm_fp_environment saved = csm_fp_enter(); /* workers do not inherit the caller's */
        run_shares(r, &t, thread);
        csm_fp_leave(saved);
        give_way(&t, 1000);
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
        for (size_t begin = 0; begin < units && goes_on(&r); begin += r.piece)
            run_piece(&r, begin, units - begin > r.piece ? begin + r.piece : units, 0);
    if (interrupt->last != 0 && goes_on(&r)) look_for_interrupt(interrupt, &r.status); /* one of many regions */
    return (csm_status)atomic_load(&r.status);
}
