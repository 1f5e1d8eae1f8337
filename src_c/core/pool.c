/* The only file with threads.
 *
 * A team belongs to one call at a time.  Its gate is one word: which workers may enter the call's work, how many have,
 * and whether it is closed.  A worker reads the work only after it has entered, by compare-and-swap; the caller closes
 * the gate when nothing is left to hand out, and then waits for those that have entered.  So a worker that gets no CPU
 * delays nobody, and a wake-up that comes too late is harmless.
 *
 * A worker that has ended its work spins for a moment, because calls come in loops, and then sleeps on the gate.  It
 * does not spin if it shares the caller's CPU or if it finds that it was not running meanwhile, as on a busy machine.
 *
 * Threads are made when a call needs them, with all signals blocked; if none can be made, there are fewer.  A team
 * keeps them, and a thread that calls again gets the team it had, whose workers have its CPU affinity.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getcpu */
#endif
#include "pool.h"

#include <time.h>

#ifndef CSM_HAS_POOL
double csm_clock(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#else
#include "float_environment.h"
#include "memory.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#ifndef CSM_STACK_BYTES /* larger in builds without optimisation, whose frames are ten times as large */
#define CSM_STACK_BYTES (256 * 1024)
#endif
enum { TEAMS = 64, MAX_THREADS = 1024 };
#define SPIN_SECONDS 0.0005    /* of a worker, after its work */
#define CALLER_SECONDS 0.00005 /* that the caller spins for the last workers */
#define SLEEP_SECONDS 0.02     /* longest sleep of a caller, which looks for interrupts in between */
#define GAP_SECONDS 0.0001     /* between two readings of the clock: the thread was not running */
#define RETRY_SECONDS 0.1      /* after a thread could not be made */

struct csm_team {
    /* From the lowest bit: closed; number of workers that have entered; threads of the call; number of the call. */
    _Alignas(CSM_ALIGN) atomic_uint gate;
    atomic_int sleepers; /* workers */
    _Alignas(CSM_ALIGN) atomic_uint ended;
    atomic_int is_waiting; /* the caller sleeps on `ended` */
    _Alignas(CSM_ALIGN) csm_work work;
    void *context;
    atomic_int cpu; /* of the caller */
    atomic_int is_taken;
    int workers;
#ifdef __linux__
    cpu_set_t allowed; /* CPUs of the thread that made the workers */
#endif
};
enum { CLOSED = 1, ENTER = 2, COUNT = 0x3ff, THREADS_SHIFT = 11, CALL_SHIFT = 22 };
static unsigned entered_of(unsigned gate) { return gate / ENTER & COUNT; }
static unsigned threads_of(unsigned gate) { return gate >> THREADS_SHIFT & 0x7ff; }
static unsigned call_of(unsigned gate) { return gate >> CALL_SHIFT; }

static csm_team teams[TEAMS];
static atomic_int all_workers, cpus; /* cpus: 0 until they are first counted */
static _Atomic double may_retry; /* time from which another thread may be tried */
static _Thread_local int last_team;

double csm_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* "yield" does nothing on most CPUs */
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static int this_cpu(void) {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

/* Sleeps while *word is `value`, but not longer than `seconds` (0: no limit); may return earlier. */
#ifdef __linux__
static void sleep_on(atomic_uint *word, unsigned value, double seconds) {
    struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, seconds > 0 ? &t : NULL, NULL, 0);
}
static void wake(atomic_uint *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }
#else
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static void sleep_on(atomic_uint *word, unsigned value, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    const double end = (double)until.tv_nsec * 1e-9 + seconds;
    until.tv_sec += (time_t)end;
    until.tv_nsec = (long)(1e9 * (end - (double)(time_t)end));
    pthread_mutex_lock(&mutex);
    if (atomic_load(word) == value) {
        if (seconds > 0) pthread_cond_timedwait(&condition, &mutex, &until);
        else pthread_cond_wait(&condition, &mutex);
    }
    pthread_mutex_unlock(&mutex);
}
static void wake(atomic_uint *word) {
    (void)word;
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
}
#endif

/* If Linux does not know which CPUs share a cache, as in many virtual machines, it may wake a worker on the CPU of
 * the calling thread although others are idle.  Such a worker removes that CPU from its affinity mask, so that it is
 * moved, and then restores the mask.  It does so only if the mask allowed every CPU before (so that the full mask has
 * the same meaning, even if CPUs are added), and not under a system call filter, which may kill the process for it.
 * The caller waits for it, so that no mask changes after a call. */
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

static void leave_cpu(int cpu, unsigned threads) {
#ifdef __linux__
    static _Thread_local int is_pinned; /* remembered: asking again costs as much as a small call */
    cpu_set_t allowed;
    if (cpu < 0 || sched_getcpu() != cpu || is_pinned || is_filtered()) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    const int count = CPU_COUNT(&allowed);
    is_pinned = count < 2 || count != sysconf(_SC_NPROCESSORS_ONLN);
    if (is_pinned || (unsigned)count < threads) return;
    CPU_CLR(cpu, &allowed);
    if (sched_setaffinity(0, sizeof allowed, &allowed) != 0) return;
    memset(&allowed, 0xff, sizeof allowed);
    for (int i = 0; i < 3 && sched_setaffinity(0, sizeof allowed, &allowed) != 0; i++) {}
#else
    (void)cpu, (void)threads;
#endif
}

static int may_enter(unsigned gate, int thread, unsigned last_call) {
    return !(gate & CLOSED) && (unsigned)thread < threads_of(gate) && call_of(gate) != last_call;
}

static void sleep_at_gate(csm_team *t, int thread, unsigned last_call) {
    atomic_fetch_add(&t->sleepers, 1);
    const unsigned gate = atomic_load(&t->gate);
    if (!may_enter(gate, thread, last_call)) sleep_on(&t->gate, gate, 0);
    atomic_fetch_sub(&t->sleepers, 1);
}

/* Waits for a call's gate, and enters it.  Returns the gate. */
static unsigned enter_next(csm_team *t, int thread, unsigned last_call) {
    double begin = csm_clock(), last = begin;
    for (unsigned spins = 1;; spins++) {
        unsigned gate = atomic_load_explicit(&t->gate, memory_order_acquire);
        if (may_enter(gate, thread, last_call)) {
            if (atomic_compare_exchange_strong(&t->gate, &gate, gate + ENTER)) return gate;
            continue;
        }
        relax();
        if (spins % 32 != 0) continue;
        const double now = csm_clock();
        if (now - begin > SPIN_SECONDS || now - last > GAP_SECONDS || this_cpu() == atomic_load(&t->cpu)) {
            sleep_at_gate(t, thread, last_call);
            begin = csm_clock();
        }
        last = csm_clock();
    }
}

static void *run_worker(void *place) {
    csm_team *t = &teams[(uintptr_t)place / MAX_THREADS];
    const int thread = (int)((uintptr_t)place % MAX_THREADS);
    for (unsigned call = UINT_MAX;;) {
        const unsigned gate = enter_next(t, thread, call);
        call = call_of(gate);
        leave_cpu(atomic_load_explicit(&t->cpu, memory_order_relaxed), threads_of(gate));
        csm_fp_environment saved = csm_fp_enter(); /* a worker does not inherit the caller's environment */
        t->work(t->context, thread);
        csm_fp_leave(saved);
        atomic_fetch_add(&t->ended, 1);
        if (atomic_load(&t->is_waiting)) wake(&t->ended);
    }
    return NULL;
}

static int make_worker(csm_team *t, int thread) {
    const uintptr_t place = (uintptr_t)(t - teams) * MAX_THREADS + (uintptr_t)thread;
    pthread_attr_t attributes;
    pthread_t id;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, CSM_STACK_BYTES);
    int failed = pthread_create(&id, &attributes, run_worker, (void *)place);
    pthread_attr_destroy(&attributes);
    if (failed == EINVAL) failed = pthread_create(&id, NULL, run_worker, (void *)place);
    return !failed;
}

static void add_workers(csm_team *t, int wanted) {
    /* with many calls at a time there are enough for all CPUs */
    if (!atomic_load(&cpus)) atomic_store(&cpus, (int)sysconf(_SC_NPROCESSORS_ONLN));
    const int most = wanted > 2 * atomic_load(&cpus) ? wanted : 2 * atomic_load(&cpus);
    if (atomic_load(&all_workers) >= most || csm_clock() < atomic_load(&may_retry)) return;
    sigset_t all, before;
    sigfillset(&all);
#ifdef __linux__
    if (t->workers == 0) sched_getaffinity(0, sizeof t->allowed, &t->allowed);
#endif
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the process */
    while (t->workers < wanted && atomic_load(&all_workers) < most) {
        if (!make_worker(t, t->workers + 1)) {
            atomic_store(&may_retry, csm_clock() + RETRY_SECONDS);
            break;
        }
        t->workers++;
        atomic_fetch_add(&all_workers, 1);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int try_team(csm_team *t) {
    return !atomic_load_explicit(&t->is_taken, memory_order_relaxed) && !atomic_exchange(&t->is_taken, 1);
}

/* Whether the workers of a team that another thread has used may run where this thread may. */
static int has_same_cpus(const csm_team *t) {
#ifdef __linux__
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_EQUAL(&allowed, &t->allowed);
#else
    (void)t;
    return 1;
#endif
}

csm_team *csm_team_take(int threads) {
    if (threads > MAX_THREADS - 1) threads = MAX_THREADS - 1;
    csm_team *t = NULL;
    if (last_team && try_team(&teams[last_team - 1])) t = &teams[last_team - 1];
    for (int i = 0; !t && i < TEAMS; i++) {
        if (!try_team(&teams[i])) continue;
        if (teams[i].workers == 0 || has_same_cpus(&teams[i])) t = &teams[i];
        else csm_team_release(&teams[i]);
    }
    if (!t) return NULL; /* as many calls at a time as there are teams */
    if (t->workers < threads - 1) add_workers(t, threads - 1);
    last_team = (int)(t - teams) + 1;
    if (t->workers > 0) return t;
    csm_team_release(t);
    return NULL;
}

void csm_team_release(csm_team *t) { atomic_store_explicit(&t->is_taken, 0, memory_order_release); }

int csm_team_open(csm_team *t, int threads, csm_work work, void *context) {
    if (threads > MAX_THREADS - 1) threads = MAX_THREADS - 1;
    t->work = work;
    t->context = context;
    atomic_store_explicit(&t->cpu, this_cpu(), memory_order_relaxed);
    atomic_store_explicit(&t->ended, 0, memory_order_relaxed);
    const unsigned call = call_of(atomic_load_explicit(&t->gate, memory_order_relaxed)) + 1;
    atomic_store(&t->gate, call << CALL_SHIFT | (unsigned)threads << THREADS_SHIFT);
    if (atomic_load(&t->sleepers) == 0) return 0;
    wake(&t->gate);
    return 1;
}

int csm_team_entered(csm_team *t) { return (int)entered_of(atomic_load_explicit(&t->gate, memory_order_relaxed)); }

int csm_team_close(csm_team *t) { return (int)entered_of(atomic_fetch_or(&t->gate, CLOSED)); }

int csm_team_wait(csm_team *t, int entered) {
    unsigned ended = 0;
    const double begin = csm_clock();
    for (unsigned spins = 1;; spins++) {
        ended = atomic_load_explicit(&t->ended, memory_order_acquire);
        if (ended == (unsigned)entered) return 1;
        relax();
        if (spins % 32 == 0 && csm_clock() - begin > CALLER_SECONDS) break;
    }
    atomic_store(&t->is_waiting, 1);
    ended = atomic_load(&t->ended);
    if (ended != (unsigned)entered) sleep_on(&t->ended, ended, SLEEP_SECONDS);
    atomic_store(&t->is_waiting, 0);
    return atomic_load(&t->ended) == (unsigned)entered;
}
#endif
