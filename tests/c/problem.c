/* Problems of the softmax family in every layout, the scalar unit's results, and helpers for the tests of the C core: a
 * count of checks, failing allocations, guard pages. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "problem.h"

#include "../../src_c/vec/half.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

/* Counting and failing allocations */

static atomic_int armed;
atomic_long asked, live, failed_requests;
static atomic_long fail_at;
void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
int __real_posix_memalign(void **, size_t, size_t);
void __real_free(void *);
void *__wrap_malloc(size_t);
void *__wrap_calloc(size_t, size_t);
int __wrap_posix_memalign(void **, size_t, size_t);
void __wrap_free(void *);

static int is_refused(void) {
    if (!armed) return 0;
    if (++asked != fail_at) return 0;
    failed_requests++;
    return 1;
}
static void *got(void *p) {
    if (p && armed) live++;
    return p;
}
void *__wrap_malloc(size_t size) { return is_refused() ? NULL : got(__real_malloc(size)); }
void *__wrap_calloc(size_t count, size_t size) { return is_refused() ? NULL : got(__real_calloc(count, size)); }
int __wrap_posix_memalign(void **p, size_t alignment, size_t size) {
    if (is_refused()) return 12; /* ENOMEM */
    int error = __real_posix_memalign(p, alignment, size);
    if (!error) got(*p);
    return error;
}
void __wrap_free(void *p) {
    if (p && armed) live--;
    __real_free(p);
}
void arm(long at) {
    asked = live = failed_requests = 0;
    fail_at = at;
    armed = 1;
}
void disarm(void) { armed = 0; }

long passed, failed;
int check(int ok, const char *format, ...) {
    if (ok) {
        passed++;
        return 1;
    }
    if (failed++ < 40) {
        va_list list;
        va_start(list, format);
        fputs("FAILED ", stdout);
        vprintf(format, list);
        fputc('\n', stdout);
        va_end(list);
    }
    return 0;
}

void *need(size_t size) {
    void *p = malloc(size ? size : 1);
    if (!p) abort();
    return p;
}

/* Names, sizes and functions, from the lists of registry.h */

typedef csm_status (*unary)(const csm_shape *, const csm_view *, const csm_view *, const csm_options *);
typedef csm_status (*binary)(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                             const csm_options *);
#define NAME(name, storage, compute) #name,
#define ITEM(name, storage, compute) sizeof(storage),
#define OP_NAME(name, signature, keeps, pass1, combine) #name,
#define OP_BINARY(name, signature, keeps, pass1, combine) CSM_INPUTS_##signature == 2,
#define OP_KEEPS(name, signature, keeps, pass1, combine) keeps,
#define UNARY(name, storage, compute, op) {.unary = csm_##op##_##name},
#define BINARY(name, storage, compute, op) {.binary = csm_##op##_##name},
#define FUNCTIONS(op, signature, keeps, pass1, combine) {CSM_DTYPES_WITH(signature, op)},
#define ISA_NAME(name, bits) #name,
const char *const dtypes[CSM_DTYPE_COUNT] = {CSM_DTYPES(NAME)};
const size_t sizes_of[CSM_DTYPE_COUNT] = {CSM_DTYPES(ITEM)};
const char *const ops[CSM_OP_COUNT] = {CSM_OPS(OP_NAME)};
const int has_b[CSM_OP_COUNT] = {CSM_OPS(OP_BINARY)}, keeps[CSM_OP_COUNT] = {CSM_OPS(OP_KEEPS)};
static const union {
    unary unary;
    binary binary;
} functions[CSM_OP_COUNT][CSM_DTYPE_COUNT] = {CSM_OPS(FUNCTIONS)};
const char *const all_isas[ALL_ISAS] = {CSM_ISAS(ISA_NAME)};
const char *isas[ALL_ISAS];
int isa_count;

csm_status call(int op, int dtype, const csm_shape *shape, const csm_view *a, const csm_view *b, const csm_view *y,
                const csm_options *options) {
    if (!has_b[op]) return functions[op][dtype].unary(shape, a, y, options);
    return functions[op][dtype].binary(shape, a, b, y, options);
}
void use(const char *isa) {
    if (csm_select_isa(isa) || strcmp(csm_isa(), isa)) abort();
}

/* Data */

static uint64_t state;
void seed(uint64_t s) {
    state = s * 0x9e3779b97f4a7c15u + 1;
    for (int i = 0; i < 4; i++) state = state * 6364136223846793005u + 1442695040888963407u;
}
uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

const char *const kinds[] = {"normal", "ties", "wide", "beyond", "special", "ahead"};

/* Returns a number with so few bits that it depends on neither libm nor the rounding mode. */
static double value(int kind, int dtype, size_t row) {
    double bell = ((double)(next() >> 12) + (next() >> 12) + (next() >> 12) + (next() >> 12)) / 0x1p19 - 4;
    double spread = (double)(int32_t)next() / 0x1p31;
    static const double largest[] = {0x1.fffffep127, 0x1.fffffffffffffp1023, 65504, 0x1.fep127};
    static const double beyond[] = {3e6, 0x1p47, 30000, 3e6};
    switch (kind) {
    case NORMAL: return bell * 4;
    case TIES: return (double)(next() % 5) - 2;
    case WIDE: return spread * (dtype == CSM_DTYPE_f64 ? 800 : 120);
    case BEYOND: return row % 3 == 0 ? bell : row % 3 == 1 ? bell * 8 + beyond[dtype] : spread * largest[dtype];
    default: break;
    }
    switch (next() % (row % 2 ? 64 : 8)) {
    case 0: return row % 8 == 2 ? NAN : -INFINITY;
    case 1: return row % 8 == 4 ? INFINITY : -INFINITY;
    case 2: return -0.0;
    case 3: return largest[dtype] * (row % 8 < 6 ? -1 : 1);
    case 4: return dtype == CSM_DTYPE_f64 ? 0x1p-1074 : dtype == CSM_DTYPE_f16 ? 0x1p-24 : 0x1p-133;
    case 5: return row % 8 == 6 ? -INFINITY : 0;
    default: return row % 8 == 7 ? -INFINITY : bell * 2;
    }
}

void put(int dtype, void *to, size_t i, double v) {
    if (dtype == CSM_DTYPE_f32) ((float *)to)[i] = (float)v;
    else if (dtype == CSM_DTYPE_f64) ((double *)to)[i] = v;
    else ((uint16_t *)to)[i] = dtype == CSM_DTYPE_f16 ? csm_to_f16((float)v) : csm_to_bf16((float)v);
}
double get(int dtype, const void *from, size_t i) {
    if (dtype == CSM_DTYPE_f32) return ((const float *)from)[i];
    if (dtype == CSM_DTYPE_f64) return ((const double *)from)[i];
    uint16_t h = ((const uint16_t *)from)[i];
    return dtype == CSM_DTYPE_f16 ? csm_from_f16(h) : csm_from_bf16(h);
}

void describe(const problem *p, char *text, size_t size) {
    snprintf(text, size, "%s_%s (%zu, %zu, n=%zu) %s T=%g%s", ops[p->op], dtypes[p->dtype], p->r1, p->r2, p->n,
             kinds[p->kind], p->temperature, p->masked ? " masked" : "");
}

/* Rows in which one class is ahead of equal, two-valued or normal others by 8 to 55. */
static void put_ahead(const problem *p) {
    for (size_t row = 0; row < p->rows; row++) {
        const double level = value(NORMAL, p->dtype, row);
        char *at = p->a + row * p->n * p->item;
        for (size_t j = 0; j < p->n; j++) {
            const double other = row % 3 == 1 ? next() % 2 : row % 3 == 2 ? value(NORMAL, p->dtype, row) / 8 : 0;
            put(p->dtype, at, j, level + other);
        }
        const size_t leader = next() % p->n; /* before the other number: arguments have no order */
        put(p->dtype, at, leader, level + 8 + next() % 48);
    }
}

problem make(int op, int dtype, int kind, size_t r1, size_t r2, size_t n, double temperature, int masked) {
    problem p = {op,          dtype, kind, masked, r1,  r2, n, r1 * r2, sizes_of[dtype], keeps[op] ? n : 1,
                 temperature, NULL,  NULL, NULL,   NULL};
    size_t count = p.rows * n;
    p.a = need(count * p.item);
    p.b = need(count * p.item);
    p.mask = need(count);
    p.want = need(p.rows * p.out * p.item);
    seed(((((uint64_t)op * 8 + (uint64_t)dtype) * 8 + (uint64_t)kind) * 16 + (uint64_t)masked) * 1000003 + n);
    for (size_t i = 0; i < count && kind != AHEAD; i++) put(dtype, p.a, i, value(kind, dtype, i / n));
    if (kind == AHEAD) put_ahead(&p);
    for (size_t i = 0; i < count; i++) {
        double u = (double)(next() >> 8) / 0x1p24; /* a probability, or its logarithm */
        if (op == CSM_OP_softmax_vjp) u = next() % 9 == 0 ? 0 : next() % 17 == 0 ? 1 : u * u;
        else u = next() % 9 == 0 ? -INFINITY : next() % 17 == 0 ? 0 : -90 * u * u;
        if (kind == SPECIAL && i / n % 4 == 1 && next() % 16 == 0) u = NAN;
        put(dtype, p.b, i, u);
    }
    for (size_t i = 0; i < count; i++) {
        size_t row = i / n;
        p.mask[i] = (char)(row % 5 == 4 ? 0 : row % 5 == 3 ? 1 : next() % 3 ? (next() & 254) + 1 : 0);
    }
    return p;
}
void drop(problem *p) {
    free(p->a);
    free(p->b);
    free(p->mask);
    free(p->want);
}

place lay(int layout, size_t r1, size_t r2, size_t n, size_t item) {
    ptrdiff_t i = (ptrdiff_t)item, a = (ptrdiff_t)r1, b = (ptrdiff_t)r2, k = (ptrdiff_t)n;
    place p = {0, b * k * i, k * i, i, 0};
    switch (layout) {
    case PADDED: p = (place){0, b * (k + 3) * i, (k + 3) * i, i, 0}; break;
    case STRIDED: p = (place){0, b * (3 * k + 1) * i, (3 * k + 1) * i, 3 * i, 0}; break;
    case TILE: p = (place){0, k * b * i, i, b * i, 0}; break;
    case TILE0: p = (place){0, b * i, i, a * b * i, 0}; break;
    case TILE_REVERSED: p = (place){0, b * i, i, -a * b * i, 0}; break;
    case REVERSED: p = (place){0, -b * k * i, -k * i, -i, 0}; break;
    case UNALIGNED: p.offset = 1; break;
    case TILE_UNALIGNED: p = (place){0, b * i, i, a * b * i + 1, 0}; break;
    default: break;
    }
    ptrdiff_t low = 0, high = 0;
    const ptrdiff_t ends[3] = {(a - 1) * p.s1, (b - 1) * p.s2, (k - 1) * p.axis};
    for (int d = 0; d < 3; d++) *(ends[d] < 0 ? &low : &high) += ends[d];
    p.offset -= low;
    p.bytes = (size_t)(p.offset + high + i);
    return p;
}
void spread(const problem *p, char *to, place l, const char *from, size_t n, size_t item) {
    for (size_t r = 0; r < p->rows; r++) {
        char *row = to + l.offset + (ptrdiff_t)(r / p->r2) * l.s1 + (ptrdiff_t)(r % p->r2) * l.s2;
        const char *x = from + r * n * item;
        if (item == 4)
            for (size_t j = 0; j < n; j++) memcpy(row + (ptrdiff_t)j * l.axis, x + j * 4, 4);
        else if (item == 8)
            for (size_t j = 0; j < n; j++) memcpy(row + (ptrdiff_t)j * l.axis, x + j * 8, 8);
        else
            for (size_t j = 0; j < n; j++) memcpy(row + (ptrdiff_t)j * l.axis, x + j * item, item);
    }
}
csm_shape shape_of(const problem *p) { return (csm_shape){p->n, 2, {p->r1, p->r2}}; }
csm_view view_of(char *data, place l) {
    csm_view v = {data + l.offset, l.axis, {l.s1, l.s2}};
    return v;
}
csm_options options_of(const problem *p, const csm_view *where, int threads) {
    csm_options o = CSM_OPTIONS_INIT;
    o.temperature = p->temperature;
    o.where = p->masked ? where : NULL;
    o.threads = threads;
    return o;
}

/* Computes the expected result: scalar unit, contiguous rows, one thread. */
uint64_t hash = 0xcbf29ce484222325u;
void answer(problem *p) {
    csm_shape shape = shape_of(p);
    csm_view a = view_of(p->a, lay(C, p->r1, p->r2, p->n, p->item));
    csm_view b = view_of(p->b, lay(C, p->r1, p->r2, p->n, p->item));
    csm_view m = view_of(p->mask, lay(C, p->r1, p->r2, p->n, 1));
    csm_view y = view_of(p->want, lay(C, p->r1, p->r2, p->out, p->item));
    csm_options o = options_of(p, &m, 1);
    char text[128];
    describe(p, text, sizeof text);
    use("scalar");
    memset(p->want, 0xa5, p->rows * p->out * p->item);
    csm_status status = call(p->op, p->dtype, &shape, &a, &b, &y, &o);
    check(status == CSM_OK, "%s: status %d", text, status);
    for (size_t i = 0; i < p->rows * p->out * p->item; i++) hash = (hash ^ (unsigned char)p->want[i]) * 0x100000001b3u;
}

const arrangement arrangements[ARRANGEMENTS] = {{C, C, 0},
                                                {PADDED, PADDED, 0},
                                                {STRIDED, C, 0},
                                                {C, STRIDED, 0},
                                                {TILE, TILE, 0},
                                                {TILE0, TILE0, 0},
                                                {TILE0, C, 0},
                                                {C, TILE, 0},
                                                {REVERSED, C, 0},
                                                {REVERSED, REVERSED, 0},
                                                {TILE_REVERSED, TILE0, 0},
                                                {UNALIGNED, C, 0},
                                                {C, UNALIGNED, 0},
                                                {TILE_UNALIGNED, TILE0, 0},
                                                {C, C, 1},
                                                {TILE0, TILE0, 1},
                                                {STRIDED, STRIDED, 1},
                                                {REVERSED, REVERSED, 1},
                                                {UNALIGNED, UNALIGNED, 1}};

/* Computes p in an arrangement on an instruction set; every byte of the output buffer, gaps included, must be as
 * expected.  poison: masked elements are NaN, infinite or huge. */
void compare(const problem *p, arrangement l, const char *isa, int threads, int poison) {
    place at = lay(l.a, p->r1, p->r2, p->n, p->item), to = lay(l.y, p->r1, p->r2, p->out, p->item);
    place where = lay(l.a == UNALIGNED ? C : l.a, p->r1, p->r2, p->n, 1);
    int in_place = l.in_place && keeps[p->op];
    char *a = need(at.bytes), *b = need(at.bytes), *mask = need(where.bytes);
    char *y = in_place ? a : need(to.bytes), *expected = need(to.bytes), *given = p->a, text[128];
    memset(a, 0x5a, at.bytes);
    memset(y, 0x5a, to.bytes);
    memset(expected, 0x5a, to.bytes);
    if (poison) {
        given = need(p->rows * p->n * p->item);
        memcpy(given, p->a, p->rows * p->n * p->item);
        for (size_t i = 0; i < p->rows * p->n; i++)
            if (!p->mask[i]) put(p->dtype, given, i, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : 1e300);
    }
    spread(p, a, at, given, p->n, p->item);
    if (has_b[p->op]) spread(p, b, at, p->b, p->n, p->item);
    if (p->masked) spread(p, mask, where, p->mask, p->n, 1);
    spread(p, expected, to, p->want, p->out, p->item);
    csm_shape shape = shape_of(p);
    csm_view va = view_of(a, at), vb = view_of(b, at), vy = view_of(y, to), vm = view_of(mask, where);
    csm_options o = options_of(p, &vm, threads);
    use(isa);
    csm_status status = call(p->op, p->dtype, &shape, &va, &vb, &vy, &o);
    if (status != CSM_OK || memcmp(y, expected, to.bytes)) {
        describe(p, text, sizeof text);
        size_t i = 0;
        while (i + 1 < to.bytes && y[i] == expected[i]) i++;
        check(0, "%s on %s, layout %d -> %d%s%s, %d threads: status %d, first difference at byte %zu of %zu", text, isa,
              l.a, l.y, in_place ? " in place" : "", poison ? " poisoned" : "", threads, status, i, to.bytes);
    } else {
        check(1, " ");
    }
    if (poison) free(given);
    if (!in_place) free(y);
    free(a);
    free(b);
    free(mask);
    free(expected);
}

fenced fence(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (size + page - 1) / page * page;
    char *p = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, inner, PROT_READ | PROT_WRITE)) abort();
    return (fenced){p + page, p + page + inner, page};
}
void unfence(fenced f) { munmap(f.begin - f.page, (size_t)(f.end - f.begin) + 2 * f.page); }
void set_writable(fenced f, int writable) {
    if (mprotect(f.begin, (size_t)(f.end - f.begin), writable ? PROT_READ | PROT_WRITE : PROT_READ)) abort();
}
char *edge(fenced f, size_t size, int at_end) { return at_end ? f.end - size : f.begin; }
