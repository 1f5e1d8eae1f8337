/* The distribution of units over threads, the fork guard, interrupts.
 *
 * Threads are those of pool.c; OpenMP only says how many a call may use.  (With MSVC a call is a region of OpenMP.)  A
 * child process has none of its parent's threads and computes serially.  No setting of the process is changed, with one
 * exception: a worker's affinity, while the worker is moved to another CPU.  Every thread saves its floating-point
 * control word, sets the default, and restores its own: bits would otherwise depend on the number of threads.
 */
#include "parallel.h"

#include "extension.h"
#include "pool.h"

#include <time.h>

#ifdef _OPENMP
#include <omp.h>
int csm_openmp(void) { return _OPENMP; }
int csm_openmp_limit(void) { return omp_get_max_threads(); }
#else
int csm_openmp(void) { return 0; }
int csm_openmp_limit(void) { return 1; }
#endif
#ifdef CSM_HAS_POOL
#include <pthread.h>
#include <sched.h>
static atomic_int is_child;
static _Thread_local int is_inside; /* the thread computes for a parallel call, or runs a callback of one */
static void in_child(void) { atomic_store(&is_child, 1); }
/* Runs when the library is loaded, so that no fork is missed. */
__attribute__((constructor)) static void install_guard(void) { pthread_atfork(NULL, NULL, in_child); }
static int may_start_threads(void) { return !atomic_load(&is_child) && !is_inside && !omp_in_parallel(); }
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

/* Checks for an interrupt; only the calling thread (0) does.  The clock continues over all regions of a call.  The
 * callback that has stopped a call is not called again while the other threads end their pieces. */
static void check_interrupt(csm_interrupt *interrupt) {
    if (atomic_load_explicit(&interrupt->is_stopped, memory_order_relaxed)) return;
    double time = csm_now();
    if (interrupt->last == 0) interrupt->last = time;
    if (time - interrupt->last <= INTERRUPT_SECONDS && time >= interrupt->last) return;
    csm_fp_leave(interrupt->caller); /* the callback may run Python code */
    if (interrupt->check(interrupt->context)) atomic_store(&interrupt->is_stopped, 1);
    interrupt->caller = csm_fp_enter();
    interrupt->last = csm_now();
}

int csm_stops(csm_interrupt *interrupt, int thread, size_t elements) {
    if (interrupt->original) interrupt = interrupt->original;
    if (thread == 0 && interrupt->check) {
        interrupt->unchecked += elements;
        if (interrupt->unchecked >= CSM_POLL_ELEMENTS) {
            interrupt->unchecked = 0;
            check_interrupt(interrupt);
        }
    }
    return atomic_load_explicit(&interrupt->is_stopped, memory_order_relaxed);
}

static int stops(void *interrupt, int thread, size_t elements) { return csm_stops(interrupt, thread, elements); }
csm_poll csm_poll_of(csm_interrupt *interrupt, int thread) { return (csm_poll){stops, interrupt, thread}; }
int csm_stops_inner(void *poll) { return csm_poll_stops(poll, CSM_POLL_ELEMENTS); }

typedef struct region {
    csm_body body;
    void *context;
    csm_interrupt *interrupt;
    size_t piece;
    atomic_int status;
    /* Units since the last check for an interrupt.  Only the calling thread writes here. */
    _Alignas(CSM_ALIGN) size_t unchecked;
} region;

static int is_running(const region *r) {
    return atomic_load_explicit(&r->status, memory_order_relaxed) == CSM_OK &&
           !atomic_load_explicit(&r->interrupt->is_stopped, memory_order_relaxed);
}

static void run_piece(region *r, size_t begin, size_t end, int thread) {
    csm_status result = r->body(r->context, begin, end, thread);
    if (result != CSM_OK) atomic_store(&r->status, result);
    if (thread != 0 || !r->interrupt->check) return;
    r->unchecked += end - begin;
    if (r->unchecked < r->piece) return; /* in a short call, reading the clock would cost as much as ten rows */
    check_interrupt(r->interrupt);
    r->unchecked = 0;
}

#ifdef _OPENMP
/* Each thread has a share of the units, the same in every call of the same size, so that it finds its cache warm.  A
 * thread that finishes early steals pieces of the others' shares, so that no call waits for a thread that wakes up late
 * or whose CPU is busy with other threads. */
enum { SHARES = 64, PIECES = 8 /* of a share */ };
typedef struct share {
    _Alignas(CSM_ALIGN) atomic_size_t next;
    size_t end;
} share;
typedef struct shared_region {
    region *r;
    share shares[SHARES];
    size_t count, piece;
} shared_region;

/* Number of units that a thread claims at once: at least an eighth of `piece`, so that the cost of claiming them is
 * negligible. */
static size_t piece_of_share(size_t units, size_t piece) {
    size_t wanted = units / PIECES > piece / 8 ? units / PIECES : piece / 8;
    if (wanted > piece) return piece;
    return wanted > 16 ? wanted / 16 * 16 /* kernels group short rows */ : wanted ? wanted : 1;
}

static void share_out(shared_region *s, region *r, size_t units, int threads) {
    s->r = r;
    s->count = threads < SHARES ? (size_t)threads : SHARES;
    const size_t each = units / s->count, rest = units % s->count;
    for (size_t i = 0, next = 0; i < s->count; i++) {
        atomic_init(&s->shares[i].next, next);
        s->shares[i].end = next += each + (i < rest);
    }
    s->piece = piece_of_share(each, r->piece);
}

/* Runs the next piece, from the share of the thread or, if it is exhausted, of the next one.  *done: shares that the
 * thread has found exhausted.  Returns 0 if nothing is left. */
static int run_next(shared_region *s, int thread, size_t *done) {
    for (; *done < s->count; ++*done) {
        share *from = &s->shares[((size_t)thread + *done) % s->count];
        if (!is_running(s->r)) return 0;
        if (atomic_load_explicit(&from->next, memory_order_relaxed) >= from->end) continue;
        const size_t begin = atomic_fetch_add_explicit(&from->next, s->piece, memory_order_relaxed);
        if (begin >= from->end) continue;
        run_piece(s->r, begin, from->end - begin > s->piece ? begin + s->piece : from->end, thread);
        return 1;
    }
    return 0;
}
#endif

#ifdef CSM_HAS_POOL
/* The number of threads that recent calls could use.  On a machine whose CPUs are busy with other processes, waking a
 * worker is in vain, and a worker that is suspended within a piece makes its call wait for a time slice of the system.
 * So a call in which that happens halves the number of threads for a while, four times as long if it happens again
 * soon.  Long calls wake their workers all the same, and so does a call that turns out to be long. */
static atomic_int thread_limit = 1024, vain_calls;
static _Atomic double limited_until, limited_for, limited_at;
#define SLOW_SECONDS 0.0003 /* a time slice takes milliseconds */
#define LATE_SECONDS 0.001
#define MIN_LIMITED_SECONDS 0.002
#define MAX_LIMITED_SECONDS 0.512
enum {
    VAIN_CALLS = 4,  /* one after the other, before fewer threads are used */
    LONG_PIECES = 16 /* a call of more pieces takes milliseconds */
};

static int threads_now(int threads, double now) {
    const int limit = atomic_load_explicit(&thread_limit, memory_order_relaxed);
    if (limit >= threads) return threads;
    if (now < atomic_load_explicit(&limited_until, memory_order_relaxed)) return limit;
    atomic_store(&thread_limit, 2 * limit);
    atomic_store(&limited_until, now + atomic_load(&limited_for));
    return 2 * limit < threads ? 2 * limit : threads;
}

static void limit_threads(int threads, double now) {
    double seconds = 4 * atomic_load(&limited_for);
    if (now - atomic_load(&limited_at) > 5 * seconds || seconds < MIN_LIMITED_SECONDS) seconds = MIN_LIMITED_SECONDS;
    if (seconds > MAX_LIMITED_SECONDS) seconds = MAX_LIMITED_SECONDS;
    atomic_store(&thread_limit, threads > 2 ? threads / 2 : 1);
    atomic_store(&limited_for, seconds);
    atomic_store(&limited_at, now);
    atomic_store(&limited_until, now + seconds);
}

static void run_as_worker(void *context, int thread) {
    size_t done = 0;
    is_inside = 1;
    while (run_next(context, thread, &done)) {}
}

/* If a worker has been woken on the caller's CPU, as happens in virtual machines, it needs the CPU for a moment to be
 * moved (pool.c).  Returns whether the CPU went to another process instead. */
static int yield_to_workers(csm_team *team) {
    const double begin = csm_clock();
    sched_yield();
    return csm_clock() - begin > SLOW_SECONDS && csm_team_entered(team) == 0;
}

static void run_parallel(region *r, size_t units, int threads) {
    shared_region s;
    csm_team *team = csm_team_take(threads);
    share_out(&s, r, units, threads);
    const double begin = csm_clock();
    double now = begin, longest = 0; /* longest: of the caller's pieces */
    const int wanted = team ? threads_now(threads, begin) : 1, is_limited = wanted < threads;
    const int used = team && (r->piece == 1 || units / r->piece > LONG_PIECES) ? threads : wanted;
    int is_open = used > 1, has_woken = is_open && csm_team_open(team, used, run_as_worker, &s), is_vain = 0;
    size_t done = 0;
    is_inside = 1;
    for (int is_first = 1; run_next(&s, 0, &done); is_first = 0) {
        const double before = now;
        now = csm_clock();
        if (now - before > longest) longest = now - before;
        if (is_first && has_woken && !is_limited && csm_team_entered(team) == 0) {
            is_vain = yield_to_workers(team);
            now = csm_clock();
        }
        if (team && !is_open && now - begin > LATE_SECONDS) {
            is_open = 1;
            csm_team_open(team, threads, run_as_worker, &s);
        }
    }
    if (is_open) {
        const int entered = csm_team_close(team);
        while (!csm_team_wait(team, entered))
            if (r->interrupt->check) check_interrupt(r->interrupt);
        if (entered) {
            const double end = csm_clock();
            atomic_store_explicit(&vain_calls, 0, memory_order_relaxed);
            if (end - now > SLOW_SECONDS + 2 * longest) limit_threads(entered + 1, end);
        } else if (is_vain || (has_woken && atomic_fetch_add(&vain_calls, 1) >= VAIN_CALLS)) {
            limit_threads(used, now);
        }
    }
    is_inside = 0;
    if (team) csm_team_release(team);
}
#elif defined(_OPENMP)
static void run_parallel(region *r, size_t units, int threads) {
    shared_region s;
    share_out(&s, r, units, threads);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        csm_fp_environment saved = csm_fp_enter(); /* a worker does not inherit the caller's environment */
        for (size_t done = 0; run_next(&s, thread, &done);) {}
        csm_fp_leave(saved);
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
    if (interrupt->last != 0 && is_running(&r)) check_interrupt(interrupt); /* this region is one of many */
    return atomic_load(&interrupt->is_stopped) ? CSM_INTERRUPTED : (csm_status)atomic_load(&r.status);
}
