/* The model of a CUDA block: its threads as fibers, their waits, and their accesses to memory.
 *
 * Scheduling: a warp runs until all of its lanes wait at __syncthreads or are done, then the next one runs; forward, or
 * backward from the last warp and lane.  Code that relies on an order which CUDA does not promise gives other results
 * in the other direction.
 * Errors: a lane of a mask that has exited, waits elsewhere or never comes; barriers that not all threads reach; reads
 * and writes outside the given arrays or the requested shared memory, or misaligned; shared memory that is read before
 * it is written; shared memory that two threads access without a barrier between them, one of them writing.
 * Counts: requests (one access of one warp), the 32-byte sectors that they touch, bytes.
 */
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <map>
#include <string>
#include <sys/mman.h>
#include <unordered_map>
#include <vector>

namespace {

struct uint3 {
    unsigned x, y, z;
};
struct coordinates { /* as in device.h */
    uint3 thread, block, block_size, grid_size;
};

/* Fibers: each has a stack.  Assembly switches between them on x86-64, ucontext elsewhere and with -DUCONTEXT. */
const size_t STACK = 1 << 16;
#if defined(__x86_64__) && !defined(UCONTEXT)
typedef void *context;
extern "C" void cuda_model_switch(context *save, context to);
asm(".text\n"
    ".globl cuda_model_switch\n"
    "cuda_model_switch:\n"
    " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp, (%rdi)\n"
    " movq %rsi, %rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    " ret\n");
void switch_to(context *save, context *to) { cuda_model_switch(save, *to); }
void prepare(context *fiber, char *stack, void (*start)()) {
    void **top = reinterpret_cast<void **>(stack + STACK - 64);
    *--top = nullptr; /* start never returns */
    *--top = reinterpret_cast<void *>(start);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    *fiber = top;
}
#else
} // namespace
#include <ucontext.h>
namespace {
typedef ucontext_t context;
void switch_to(context *save, context *to) { swapcontext(save, to); }
void prepare(context *fiber, char *stack, void (*start)()) {
    getcontext(fiber);
    fiber->uc_stack.ss_sp = stack;
    fiber->uc_stack.ss_size = STACK - 64;
    fiber->uc_link = nullptr;
    makecontext(fiber, start, 0);
}
#endif

enum state { READY, AT_WARP, AT_BARRIER, DONE };
struct fiber {
    coordinates where;
    context saved;
    int id, lane, warp;
    state waits;
    int operation, line; /* where it waits */
    const char *file;
    unsigned mask;
    uint64_t brought[2]; /* two values: a lane may bring its next one before another lane has taken this one */
    int turn;
    unsigned warp_epoch; /* number of __syncwarp it has passed */
    std::unordered_map<void *, int> visits; /* number of times it has passed each access of the code, by address */
};
struct shadow { /* the last accesses to a word of shared memory, or to one of its bytes */
    int writer = -1, reader = -1, writer_warp = -1, reader_warp = -1;
    unsigned written = 0, written_warp = 0, read = 0, read_warp = 0; /* epochs */
    bool many_readers = false; /* in this epoch of the warp */
    bool many_warps = false; /* have read it since the last barrier of the block */
};
struct request {
    std::vector<uintptr_t> sectors;
    uint64_t bytes = 0;
    bool writes = false;
};

std::vector<fiber> fibers;
fiber *current;
context scheduler;
char *stacks;
size_t n_stacks;
std::string error;
void (*kernel)(void **);
void **arguments;

std::vector<char> shared;
std::vector<shadow> words, bytes; /* bytes: of words whose bytes have been accessed separately ... */
std::vector<char> by_bytes; /* ... which this tells for each word */
size_t dynamic_size, static_begin, static_top;
std::map<size_t, size_t> statics;
unsigned epoch; /* number of __syncthreads the block has passed */
size_t at_barrier; /* number of threads that wait there */
const fiber *first_at_barrier, *exited; /* the first of them; a thread that has exited */

struct range {
    uintptr_t from, to;
};
std::vector<range> arrays;
range parameters, library, all_shared, all_stacks, all_fibers;
bool watching, counting, racing;
std::map<std::pair<std::pair<void *, int>, int>, request> requests; /* by address in the code, visit, warp */
uint64_t totals[6];

void pause() { switch_to(&current->saved, &scheduler); }
[[noreturn]] void fail(const std::string &what) {
    char where[120];
    const uint3 &b = current->where.block;
    snprintf(where, sizeof where, " [block (%u, %u, %u), thread %d]", b.x, b.y, b.z, current->id);
    if (error.empty()) error = what + where;
    for (;;) pause();
}
std::string place(const char *file, int line) { return std::string(file ? file : "?") + ":" + std::to_string(line); }
std::string place(const fiber &f) { return place(f.file, f.line); }

/* Releases the lanes of the current mask if all of them wait at this operation. */
void release_warp() {
    const int base = current->warp * 32, lanes = std::min<int>(32, (int)fibers.size() - base);
    for (int i = 0; i < 32; i++) {
        if (!(current->mask >> i & 1)) continue;
        if (i >= lanes)
            fail("the mask names lane " + std::to_string(i) + ", which does not exist, at " + place(*current));
        const fiber &other = fibers[base + i];
        if (other.waits == DONE)
            fail("the mask names lane " + std::to_string(i) + ", which has exited, at " + place(*current));
        if (other.waits != AT_WARP) return;
        if (other.operation != current->operation || other.line != current->line || other.mask != current->mask)
            fail("divergent: lane " + std::to_string(current->lane) + " waits at " + place(*current) + ", lane " +
                 std::to_string(i) + " at " + place(other));
    }
    for (int i = 0; i < lanes; i++)
        if (current->mask >> i & 1) fibers[base + i].waits = READY;
}
void wait_for_warp(int operation, unsigned mask, uint64_t value, const char *file, int line) {
    fiber *me = current;
    me->operation = operation;
    me->mask = mask;
    me->file = file;
    me->line = line;
    if (!(mask >> me->lane & 1)) fail("a lane is not in its own mask, at " + place(*me));
    me->turn ^= 1;
    me->brought[me->turn] = value;
    me->waits = AT_WARP;
    if (operation == 0) me->warp_epoch++;
    release_warp();
    pause();
}

void touch(shadow &s, bool writes) {
    const fiber &me = *current;
    const auto concurrent = [&](int other, int warp, unsigned then, unsigned then_warp) {
        return then == epoch && other >= 0 && other != me.id && (warp != me.warp || then_warp == me.warp_epoch);
    };
    if (!writes && s.writer < 0) fail("shared memory read before it is written");
    if (concurrent(s.writer, s.writer_warp, s.written, s.written_warp))
        fail(std::string("race in shared memory: ") + (writes ? "write" : "read") + " after the write of thread " +
             std::to_string(s.writer));
    if (writes && s.reader >= 0 &&
        ((s.many_warps && s.read == epoch) || (s.many_readers && s.read == epoch && s.read_warp == me.warp_epoch) ||
         concurrent(s.reader, s.reader_warp, s.read, s.read_warp)))
        fail("race in shared memory: write after the read of thread " + std::to_string(s.reader));
    if (writes) {
        s.writer = me.id;
        s.writer_warp = me.warp;
        s.written = epoch;
        s.written_warp = me.warp_epoch;
        s.reader = -1;
        s.many_readers = s.many_warps = false;
    } else {
        const bool again = s.reader >= 0 && s.read == epoch;
        s.many_warps = again && (s.many_warps || s.reader_warp != me.warp);
        s.many_readers = again && s.read_warp == me.warp_epoch && (s.many_readers || s.reader != me.id);
        s.reader = me.id;
        s.reader_warp = me.warp;
        s.read = epoch;
        s.read_warp = me.warp_epoch;
    }
}
__attribute__((always_inline)) inline void in_shared(size_t at, size_t size, bool writes) {
    if (at + size > dynamic_size && (at < static_begin || at + size > static_top)) fail("shared memory out of bounds");
    if (at % size && size <= 16) fail("misaligned " + std::to_string(size) + "-byte access to shared memory");
    if (!racing) return;
    if (size == 4 && !by_bytes[at / 4]) return touch(words[at / 4], writes);
    for (size_t i = at; i < at + size;) {
        const size_t word = i / 4;
        if (!by_bytes[word] && i % 4 == 0 && at + size - i >= 4) {
            touch(words[word], writes);
            i += 4;
            continue;
        }
        if (!by_bytes[word]) std::fill_n(&bytes[4 * word], 4, words[word]);
        by_bytes[word] = 1;
        touch(bytes[i++], writes);
    }
}
void in_global(uintptr_t at, size_t size, bool writes, void *code) {
    /* an aggregate is announced as a whole; hardware moves it in pieces of at most 16 bytes */
    const size_t align = size <= 16 ? size : 8;
    if (at % align) fail("misaligned " + std::to_string(size) + "-byte access to global memory");
    if (!counting) return;
    request &r = requests[{{code, current->visits[code]++}, current->warp}];
    r.bytes += size;
    r.writes = writes;
    for (uintptr_t s = at / 32; s <= (at + size - 1) / 32; s++)
        if (std::find(r.sectors.begin(), r.sectors.end(), s) == r.sectors.end()) r.sectors.push_back(s);
}
[[noreturn]] void out_of_bounds(void *address, size_t size, bool writes) {
    char what[100];
    snprintf(what, sizeof what, "global %s of %zu bytes out of bounds at %p", writes ? "write" : "read", size, address);
    fail(what);
}
inline bool within(const range &r, uintptr_t at, size_t size) { return at >= r.from && at + size <= r.to; }
/* Inlined into each hook, where size and writes are constants. */
__attribute__((always_inline)) inline void access(void *address, size_t size, bool writes, void *code) {
    if (!watching) return;
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    if (within(all_shared, at, size)) return in_shared(at - all_shared.from, size, writes);
    if (within(all_stacks, at, size) || within(all_fibers, at, size) || within(parameters, at, size) ||
        within(library, at, size))
        return;
    for (const range &r : arrays)
        if (within(r, at, size)) return in_global(at, size, writes, code);
    out_of_bounds(address, size, writes);
}

int find_library(dl_phdr_info *info, size_t, void *) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto &p = info->dlpi_phdr[i];
        const uintptr_t from = info->dlpi_addr + p.p_vaddr, to = from + p.p_memsz;
        if (p.p_type == PT_LOAD && (uintptr_t)&current >= from && (uintptr_t)&current < to)
            library = {info->dlpi_addr, to};
    }
    return 0;
}
void begin() {
    kernel(arguments);
    current->waits = DONE;
    exited = current;
    for (;;) pause();
}

} // namespace

extern "C" {
coordinates *cuda_model_here;
int cuda_model_lane() { return current->lane; }
uint64_t cuda_model_exchange(int operation, unsigned mask, uint64_t value, int from, const char *file, int line) {
    wait_for_warp(operation, mask, value, file, line);
    if (!(mask >> from & 1))
        fail("a shuffle reads lane " + std::to_string(from) + " outside its mask, at " + place(file, line));
    return fibers[current->warp * 32 + from].brought[current->turn];
}
unsigned cuda_model_vote(unsigned mask, int predicate, const char *file, int line) {
    wait_for_warp(2, mask, predicate != 0, file, line);
    unsigned result = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) result |= (unsigned)fibers[current->warp * 32 + i].brought[current->turn] << i;
    return result;
}
void cuda_model_barrier(const char *file, int line) {
    fiber *me = current;
    me->waits = AT_BARRIER;
    me->file = file;
    me->line = line;
    if (exited) fail("__syncthreads at " + place(*me) + ", but thread " + std::to_string(exited->id) + " has exited");
    if (at_barrier == 0) first_at_barrier = me;
    else if (first_at_barrier->line != line)
        fail("threads at different __syncthreads: " + place(*me) + " and " + place(*first_at_barrier));
    if (++at_barrier == fibers.size()) {
        epoch++;
        at_barrier = 0;
        for (fiber &other : fibers) other.waits = READY;
    }
    pause();
}
void *cuda_model_dynamic_shared() { return shared.data(); }
void *cuda_model_static_shared(size_t id, size_t size, size_t align) {
    auto known = statics.find(id);
    if (known == statics.end()) {
        static_top = (static_top + align - 1) / align * align;
        if (static_top + size > shared.size()) fail("static and dynamic shared memory exceed the limit");
        known = statics.emplace(id, static_top).first;
        static_top += size;
    }
    return shared.data() + known->second;
}

/* The functions that -fsanitize=thread calls at each access. */
#define HOOK(n)                                                                                  \
    void __tsan_read##n(void *p) { access(p, n, false, __builtin_return_address(0)); }           \
    void __tsan_write##n(void *p) { access(p, n, true, __builtin_return_address(0)); }           \
    void __tsan_unaligned_read##n(void *p) { access(p, n, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##n(void *p) { access(p, n, true, __builtin_return_address(0)); }
HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
#undef HOOK
/* Accesses to structures whose size is no power of two; their members are aligned. */
void __tsan_read_range(void *p, size_t n) {
    for (size_t i = 0; i < n; i += 8)
        access((char *)p + i, std::min<size_t>(8, n - i), false, (char *)__builtin_return_address(0) + i);
}
void __tsan_write_range(void *p, size_t n) {
    for (size_t i = 0; i < n; i += 8)
        access((char *)p + i, std::min<size_t>(8, n - i), true, (char *)__builtin_return_address(0) + i);
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}

namespace {
enum { COUNT = 1, RACES = 2, BACKWARD = 4 };
const size_t SHARED_BYTES = 228 * 1024;

/* Thread i of a block, at the start of the kernel. */
void prepare_thread(fiber &f, size_t i, uint64_t id, const unsigned *grid, const unsigned *block) {
    f.where.block_size = {block[0], block[1], block[2]};
    f.where.grid_size = {grid[0], grid[1], grid[2]};
    f.where.thread = {(unsigned)(i % block[0]), (unsigned)(i / block[0] % block[1]),
                      (unsigned)(i / block[0] / block[1])};
    f.where.block = {(unsigned)(id % grid[0]), (unsigned)(id / grid[0] % grid[1]), (unsigned)(id / grid[0] / grid[1])};
    f.id = (int)i;
    f.lane = (int)(i % 32);
    f.warp = (int)(i / 32);
    f.waits = READY;
    f.turn = 0;
    f.warp_epoch = 0;
    f.line = 0;
    f.file = nullptr;
    f.visits.clear();
    prepare(&f.saved, stacks + i * STACK, begin);
}

/* Shared memory that holds NaN and has never been accessed; used: its bytes that the last block may have written. */
void prepare_shared(size_t dynamic, size_t used) {
    memset(shared.data(), 0xff, used);
    if (racing) {
        words.resize(shared.size() / 4);
        bytes.resize(shared.size());
        by_bytes.resize(shared.size() / 4);
        std::fill_n(words.begin(), (used + 3) / 4, shadow());
        std::fill_n(by_bytes.begin(), (used + 3) / 4, 0);
    }
    statics.clear();
    dynamic_size = dynamic;
    static_begin = static_top = (dynamic + 15) / 16 * 16;
}

bool step(fiber &f) {
    if (f.waits != READY) return false;
    current = &f;
    cuda_model_here = &f.where;
    switch_to(&scheduler, &f.saved);
    return true;
}

/* Runs the threads of a block until all of them are done or wait for ever. */
void run_threads(bool backward) {
    const size_t n = fibers.size(), warps = (n + 31) / 32;
    watching = true;
    for (bool any = true; any && error.empty();) {
        any = false;
        for (size_t w = 0; w < warps; w++) {
            const size_t warp = backward ? warps - 1 - w : w, from = warp * 32, to = std::min(n, from + 32);
            for (bool ran = true; ran && error.empty();) { /* until the whole warp waits */
                ran = false;
                for (size_t i = from; i < to && error.empty(); i++)
                    ran |= step(fibers[backward ? from + to - 1 - i : i]);
                any |= ran;
            }
        }
    }
    watching = false;
    for (const fiber &f : fibers)
        if (f.waits != DONE && error.empty())
            error = "deadlock: thread " + std::to_string(f.id) + " waits at " + place(f) +
                    (f.waits == AT_BARRIER ? " (__syncthreads)" : " (a warp operation)") +
                    " for threads that never come";
}

void prepare_launch(size_t n, const uintptr_t *memory, int n_memory, int flags) {
    if (!library.to) dl_iterate_phdr(find_library, nullptr);
    if (n_stacks < n) {
        if (stacks) munmap(stacks, n_stacks * STACK);
        n_stacks = n;
        stacks = (char *)mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                              -1, 0);
    }
    parameters = {memory[0], memory[1]};
    arrays.clear();
    for (int i = 1; i < n_memory; i++) arrays.push_back({memory[2 * i], memory[2 * i + 1]});
    counting = flags & COUNT;
    racing = flags & RACES;
    memset(totals, 0, sizeof totals);
    all_stacks = {(uintptr_t)stacks, (uintptr_t)stacks + n_stacks * STACK};
    shared.resize(SHARED_BYTES);
    all_shared = {(uintptr_t)shared.data(), (uintptr_t)shared.data() + shared.size()};
}

void add_requests() {
    for (const auto &entry : requests) {
        const request &r = entry.second;
        uint64_t *to = totals + (r.writes ? 3 : 0);
        to[0]++;
        to[1] += r.sectors.size();
        to[2] += r.bytes;
    }
}
} // namespace

/* Launches a kernel without the blocks before first_block.  memory: [from, to) of the kernel's parameters, then of the
 * arrays.  Returns whether there was an error. */
extern "C" int cuda_model_launch(void (*entry)(void **), void **at, const unsigned *grid, const unsigned *block,
                                 size_t dynamic, size_t limit, int flags, uint64_t first_block, const uintptr_t *memory,
                                 int n_memory, char *message, uint64_t *counts) {
    const size_t n = (size_t)block[0] * block[1] * block[2];
    const uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    const bool backward = flags & BACKWARD;
    error.clear();
    if (n == 0 || n > 1024) error = "a block has 1 to 1024 threads, not " + std::to_string(n);
    else if (dynamic > limit)
        error = std::to_string(dynamic) + " bytes of shared memory; the kernel may have " + std::to_string(limit);
    kernel = entry;
    arguments = at;
    prepare_launch(n, memory, n_memory, flags);
    size_t used = SHARED_BYTES;
    for (uint64_t b = first_block; b < blocks && error.empty(); b++) {
        const uint64_t id = backward ? blocks - 1 - (b - first_block) : b;
        prepare_shared(dynamic, used);
        epoch = 0;
        at_barrier = 0;
        exited = nullptr;
        requests.clear();
        fibers.resize(n);
        all_fibers = {(uintptr_t)fibers.data(), (uintptr_t)(fibers.data() + n)};
        for (size_t i = 0; i < n; i++) prepare_thread(fibers[i], i, id, grid, block);
        run_threads(backward);
        used = std::max(dynamic, static_top);
        add_requests();
    }
    memcpy(counts, totals, sizeof totals);
    snprintf(message, 1000, "%s", error.c_str());
    return !error.empty();
}
