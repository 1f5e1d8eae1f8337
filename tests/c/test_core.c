/* The C core without Python: every operation, dtype, layout and instruction set against the scalar unit on
 * contiguous rows, byte for byte.
 *
 *     test_core [--every K]      K > 1: every K-th case only (emulators, sanitizers)
 *
 * Inputs are made in integer arithmetic, so the line `hash` is the same on every machine.  The link needs
 * -Wl,--wrap=malloc,--wrap=calloc,--wrap=posix_memalign,--wrap=free.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../../src_c/core/call.h"
#include "../../src_c/core/extension.h"
#include "../../src_c/vec/half.h"

#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* Counting and failing allocations */

static atomic_int armed;
static atomic_long asked, live, failed_requests, fail_at;
void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
int __real_posix_memalign(void **, size_t, size_t);
void __real_free(void *);
void *__wrap_malloc(size_t);
void *__wrap_calloc(size_t, size_t);
int __wrap_posix_memalign(void **, size_t, size_t);
void __wrap_free(void *);

static int refused(void) {
    if (!armed) return 0;
    if (++asked != fail_at) return 0;
    failed_requests++;
    return 1;
}
static void *got(void *p) {
    if (p && armed) live++;
    return p;
}
void *__wrap_malloc(size_t size) { return refused() ? NULL : got(__real_malloc(size)); }
void *__wrap_calloc(size_t count, size_t size) { return refused() ? NULL : got(__real_calloc(count, size)); }
int __wrap_posix_memalign(void **p, size_t alignment, size_t size) {
    if (refused()) return 12; /* ENOMEM */
    int error = __real_posix_memalign(p, alignment, size);
    if (!error) got(*p);
    return error;
}
void __wrap_free(void *p) {
    if (p && armed) live--;
    __real_free(p);
}
static void arm(long at) {
    asked = live = failed_requests = 0;
    fail_at = at;
    armed = 1;
}
static void disarm(void) { armed = 0; }

static long passed, failed;
__attribute__((format(printf, 2, 3))) static int check(int ok, const char *format, ...) {
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

static void *need(size_t size) {
    void *p = malloc(size ? size : 1);
    if (!p) abort();
    return p;
}

/* The names of everything */

typedef csm_status (*unary)(const csm_shape *, const csm_view *, const csm_view *, const csm_options *);
typedef csm_status (*binary)(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                             const csm_options *);
#define NAME(name, storage, compute) #name,
#define ITEM(name, storage, compute) sizeof(storage),
#define OP_NAME(name, signature, keeps, pass1, combine) #name,
#define OP_BINARY(name, signature, keeps, pass1, combine) CSM_INPUTS_##signature == 2,
#define OP_KEEPS(name, signature, keeps, pass1, combine) keeps,
#define SOFTMAX(name, storage, compute) csm_softmax_##name,
#define LOG_SOFTMAX(name, storage, compute) csm_log_softmax_##name,
#define LOGSUMEXP(name, storage, compute) csm_logsumexp_##name,
#define SOFTMAX_VJP(name, storage, compute) csm_softmax_vjp_##name,
#define LOG_SOFTMAX_VJP(name, storage, compute) csm_log_softmax_vjp_##name,
#define ISA_NAME(name, bits) #name,
static const char *const dtypes[] = {CSM_DTYPES(NAME)};
static const size_t sizes_of[] = {CSM_DTYPES(ITEM)};
static const char *const ops[] = {CSM_OPS(OP_NAME)};
static const int has_b[] = {CSM_OPS(OP_BINARY)}, keeps[] = {CSM_OPS(OP_KEEPS)};
static const unary unaries[][CSM_DTYPE_COUNT] = {{CSM_DTYPES(SOFTMAX)},
                                                 {CSM_DTYPES(LOG_SOFTMAX)},
                                                 {CSM_DTYPES(LOGSUMEXP)}};
static const binary binaries[][CSM_DTYPE_COUNT] = {{CSM_DTYPES(SOFTMAX_VJP)}, {CSM_DTYPES(LOG_SOFTMAX_VJP)}};
static const char *const all_isas[] = {CSM_ISAS(ISA_NAME)};
enum { ALL_ISAS = sizeof all_isas / sizeof all_isas[0] };
static const char *isas[ALL_ISAS];
static int isa_count;

static csm_status call(int op, int dtype, const csm_shape *shape, const csm_view *a, const csm_view *b,
                       const csm_view *y, const csm_options *options) {
    if (!has_b[op]) return unaries[op][dtype](shape, a, y, options);
    return binaries[op - CSM_OP_softmax_vjp][dtype](shape, a, b, y, options);
}
static void use(const char *isa) {
    if (csm_select_isa(isa) || strcmp(csm_isa(), isa)) abort();
}

/* Data */

static uint64_t state;
static void seed(uint64_t s) {
    state = s * 0x9e3779b97f4a7c15u + 1;
    for (int i = 0; i < 4; i++) state = state * 6364136223846793005u + 1442695040888963407u;
}
static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

enum { NORMAL, TIES, WIDE, BEYOND, SPECIAL, KINDS };
static const char *const kinds[] = {"normal", "ties", "wide", "beyond", "special"};

/* A number with few enough bits that no libm function and no rounding mode has a say in it. */
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

static void put(int dtype, void *to, size_t i, double v) {
    if (dtype == CSM_DTYPE_f32) ((float *)to)[i] = (float)v;
    else if (dtype == CSM_DTYPE_f64) ((double *)to)[i] = v;
    else ((uint16_t *)to)[i] = dtype == CSM_DTYPE_f16 ? csm_to_f16((float)v) : csm_to_bf16((float)v);
}
static double get(int dtype, const void *from, size_t i) {
    if (dtype == CSM_DTYPE_f32) return ((const float *)from)[i];
    if (dtype == CSM_DTYPE_f64) return ((const double *)from)[i];
    uint16_t h = ((const uint16_t *)from)[i];
    return dtype == CSM_DTYPE_f16 ? csm_from_f16(h) : csm_from_bf16(h);
}

/* One problem in canonical form: contiguous rows, and the scalar unit's answer. */
typedef struct problem {
    int op, dtype, kind, masked;
    size_t r1, r2, n, rows, item, out; /* out: elements a row of y */
    double temperature;
    char *a, *b, *mask, *want;
} problem;

static void describe(const problem *p, char *text, size_t size) {
    snprintf(text, size, "%s_%s (%zu, %zu, n=%zu) %s T=%g%s", ops[p->op], dtypes[p->dtype], p->r1, p->r2, p->n,
             kinds[p->kind], p->temperature, p->masked ? " masked" : "");
}

static problem make(int op, int dtype, int kind, size_t r1, size_t r2, size_t n, double temperature, int masked) {
    problem p = {op,          dtype, kind, masked, r1,  r2, n, r1 * r2, sizes_of[dtype], keeps[op] ? n : 1,
                 temperature, NULL,  NULL, NULL,   NULL};
    size_t count = p.rows * n;
    p.a = need(count * p.item);
    p.b = need(count * p.item);
    p.mask = need(count);
    p.want = need(p.rows * p.out * p.item);
    seed(((((uint64_t)op * 8 + (uint64_t)dtype) * 8 + (uint64_t)kind) * 16 + (uint64_t)masked) * 1000003 + n);
    for (size_t i = 0; i < count; i++) put(dtype, p.a, i, value(kind, dtype, i / n));
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
static void drop(problem *p) {
    free(p->a);
    free(p->b);
    free(p->mask);
    free(p->want);
}

/* Where an array of r1 x r2 rows of n lies in memory. */
typedef struct place {
    ptrdiff_t offset, s1, s2, axis;
    size_t bytes;
} place;
enum { C, PADDED, STRIDED, TILE, TILE0, TILE_REVERSED, REVERSED, UNALIGNED, TILE_UNALIGNED };

static place lay(int layout, size_t r1, size_t r2, size_t n, size_t item) {
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
static void spread(const problem *p, char *to, place l, const char *from, size_t n, size_t item) {
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
static csm_shape shape_of(const problem *p) { return (csm_shape){p->n, 2, {p->r1, p->r2}}; }
static csm_view view_of(char *data, place l) {
    csm_view v = {data + l.offset, l.axis, {l.s1, l.s2}};
    return v;
}
static csm_options options_of(const problem *p, const csm_view *where, int threads) {
    csm_options o = CSM_OPTIONS_INIT;
    o.temperature = p->temperature;
    o.where = p->masked ? where : NULL;
    o.threads = threads;
    return o;
}

/* The specification: scalar, contiguous, one thread. */
static uint64_t hash = 0xcbf29ce484222325u;
static void answer(problem *p) {
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

typedef struct arrangement {
    int a, y, in_place;
} arrangement;
static const arrangement arrangements[] = {{C, C, 0},
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
enum { ARRANGEMENTS = sizeof arrangements / sizeof arrangements[0] };

/* Runs p laid out so on an instruction set; every byte of the output buffer, gaps included, must be as expected.
 * poison: what masked elements hold. */
static void compare(const problem *p, arrangement l, const char *isa, int threads, int poison) {
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

static const double temperatures[2][5] = {{1, 0.7, 0, INFINITY, 1e-300}, {1, 0.7, 1e-300, 1e300, 3}};

static void test_grid(size_t every) {
    static const size_t large[] = {1000, 4095, 4096, 4097, 12345}, across[] = {9, 2, 4, 8, 3, 17, 33};
    size_t at = 0;
    for (size_t s = 1; s <= 140 + sizeof large / sizeof large[0]; s++) {
        size_t n = s <= 140 ? s : large[s - 141];
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
                for (int combination = 0; combination < KINDS + 4; combination++) {
                    if (n >= 1000 && combination % 3 != (op + dtype) % 3) continue;
                    int kind = combination < KINDS ? combination : (int)((n + (size_t)combination) % KINDS);
                    double t = temperatures[has_b[op]][combination < KINDS ? 0 : combination - KINDS + 1];
                    for (int masked = 0; masked < 2; masked++) {
                        if (at++ % every) continue;
                        size_t r2 =
                            across[(n + (size_t)(op + 2 * dtype + 3 * combination + masked)) % (n < 1000 ? 7 : 4)];
                        problem p = make(op, dtype, kind, n >= 1000 ? 1 : 2, r2, n, t, masked);
                        answer(&p);
                        for (int isa = 0; isa < isa_count; isa++)
                            for (int l = 0; l < ARRANGEMENTS; l++) {
                                if (masked && l % 3 != (int)(n % 3)) continue;
                                compare(&p, arrangements[l], isas[isa], 1, 0);
                                if (masked) compare(&p, arrangements[l], isas[isa], 1, 1);
                            }
                        drop(&p);
                    }
                }
    }
}

/* A special value at every index, alone and in tiles; the rules of the table in the documentation. */
static void test_special(size_t every) {
    static const double specials[] = {NAN, INFINITY, -INFINITY, -0.0};
    static const size_t sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 69, 128, 133, 260};
    size_t at = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
                for (int which = 0; which < 4; which++) {
                    if (at++ % every) continue;
                    size_t n = sizes[s];
                    problem p = make(op, dtype, NORMAL, 1, n, n, 1, 0);
                    for (size_t i = 0; i < n; i++) put(dtype, p.a, i * n + i, specials[which]);
                    answer(&p);
                    if (!has_b[op] && which < 3)
                        for (size_t i = 0; i < n; i++) {
                            int ok = 1;
                            for (size_t j = 0; j < p.out; j++) {
                                double y = get(dtype, p.want, i * p.out + j);
                                if (which == 0) ok &= y != y;
                                else if (which == 1) ok &= keeps[op] ? y != y : y == INFINITY;
                                else if (n == 1) ok &= keeps[op] ? y != y : y == -INFINITY;
                                else if (!keeps[op]) ok &= y - y == 0;
                                else if (j == i) ok &= op == CSM_OP_softmax ? y == 0 : y == -INFINITY;
                                else ok &= y - y == 0;
                            }
                            check(ok, "%s_%s: %g at %zu of %zu", ops[op], dtypes[dtype], specials[which], i, n);
                        }
                    for (int isa = 0; isa < isa_count; isa++) {
                        compare(&p, arrangements[0], isas[isa], 1, 0);
                        compare(&p, arrangements[5], isas[isa], 1, 0);
                    }
                    drop(&p);
                }
}

/* Against long double: that all units agree would not help if all were wrong.  The full measurement is in Python. */
static void test_accuracy(size_t every) {
    for (size_t n = 1; n < 300; n += n < 20 ? 1 : 13 * every)
        for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++) {
            static const double unit[] = {0x1p-23, 0x1p-52, 0x1p-10, 0x1p-7};
            static const double tiny[] = {0x1p-149, 0x1p-1074, 0x1p-24, 0x1p-133};
            for (int op = 0; op < 3; op++) {
                problem p = make(op, dtype, NORMAL, 1, 5, n, 1, 0);
                answer(&p);
                double worst = 0;
                for (size_t r = 0; r < p.rows; r++) {
                    long double max = -INFINITY, sum = 0;
                    for (size_t j = 0; j < n; j++) max = fmaxl(max, (long double)get(dtype, p.a, r * n + j));
                    int taken = 0;
                    for (size_t j = 0; j < n; j++) {
                        long double x = get(dtype, p.a, r * n + j);
                        if (x == max && !taken) taken = 1; /* one maximum stays out: log1p */
                        else sum += expl(x - max);
                    }
                    for (size_t j = 0; j < p.out; j++) {
                        long double x = get(dtype, p.a, r * n + j), y = get(dtype, p.want, r * p.out + j), z;
                        if (op == CSM_OP_softmax) z = expl(x - max) / (1 + sum);
                        else if (op == CSM_OP_log_softmax) z = (x - max) - log1pl(sum);
                        else z = max + log1pl(sum);
                        long double scale = op == CSM_OP_logsumexp ? fmaxl(fabsl(z), fabsl(max)) : fabsl(z);
                        int e;
                        frexpl(scale, &e);
                        long double ulp = fmaxl(ldexpl(unit[dtype], e - 1), tiny[dtype]);
                        worst = fmax(worst, (double)(fabsl(y - z) / ulp));
                    }
                }
                double bar = dtype >= CSM_DTYPE_f16 ? 0.51 : op || dtype ? 4 : 3;
                check(worst <= bar, "%s_%s n=%zu: %.3g ULP", ops[op], dtypes[dtype], n, worst);
                drop(&p);
            }
        }
}

/* The same bits for every thread count. */
static void test_threads(size_t every) {
    static const struct {
        size_t r1, r2, n;
        int layout;
    } cases[] = {{1, 80, 1000, C},  {2, 300, 100, TILE},      {1, 3, 40000, C},          {1, 5, 20000, STRIDED},
                 {1, 1, 300000, C}, {1, 1, (1 << 20) + 5, C}, {1, 2, 1 << 20, REVERSED}, {1, 64, 1000, TILE0},
                 {30000, 2, 1, C},  {70, 30, 33, UNALIGNED}};
    size_t at = 0;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++) {
                if (cases[c].n > 100000 && (dtype > 1 || (c > 5 && op % 2))) continue;
                if (at++ % every) continue;
                int masked = (op + dtype) % 3 == 1 && cases[c].n <= 100000;
                problem p = make(op, dtype, (op + dtype) % 2 ? WIDE : BEYOND, cases[c].r1, cases[c].r2, cases[c].n,
                                 (op + dtype) % 4 == 3 ? 0.7 : 1, masked);
                answer(&p);
                static const int counts[] = {2, 3, 4, 7};
                for (int k = 0; k < 4; k++)
                    compare(&p, (arrangement){cases[c].layout, cases[c].layout, k == 3},
                            isas[k % 2 ? isa_count - 1 : 0], counts[k], 0);
                compare(&p, (arrangement){cases[c].layout, C, 0}, isas[isa_count - 1], 1, 0);
                drop(&p);
            }
}

/* Memory between two pages that may not be touched. */
typedef struct fenced {
    char *begin, *end;
    size_t page;
} fenced;
static fenced fence(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (size + page - 1) / page * page;
    char *p = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, inner, PROT_READ | PROT_WRITE)) abort();
    return (fenced){p + page, p + page + inner, page};
}
static void unfence(fenced f) { munmap(f.begin - f.page, (size_t)(f.end - f.begin) + 2 * f.page); }
static void readable(fenced f, int writable) {
    if (mprotect(f.begin, (size_t)(f.end - f.begin), writable ? PROT_READ | PROT_WRITE : PROT_READ)) abort();
}
static char *edge(fenced f, size_t size, int at_end) { return at_end ? f.end - size : f.begin; }

/* No access outside the arrays, on either side; inputs are read-only. */
static void test_guard_pages(size_t every) {
    enum { MOST = 140, ROWS = 17 };
    fenced a = fence(MOST * ROWS * 8), b = fence(MOST * ROWS * 8), m = fence(MOST * ROWS), y = fence(MOST * ROWS * 8);
    size_t at = 0;
    for (size_t n = 1; n <= MOST; n++)
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
                for (int variant = 0; variant < 4; variant++) { /* one row, two rows, tile, masked */
                    if (at++ % every) continue;
                    size_t r2 = variant == 0 ? 1 : variant == 2 ? (n % 2 ? 9 : ROWS) : 2;
                    problem p = make(op, dtype, n % 3 ? WIDE : BEYOND, 1, r2, n, 1, variant == 3);
                    answer(&p);
                    int layout = variant == 2 ? TILE : C;
                    place from = lay(layout, 1, r2, n, p.item), where = lay(layout, 1, r2, n, 1);
                    place to = lay(layout, 1, r2, p.out, p.item);
                    csm_shape shape = shape_of(&p);
                    int same = 1;
                    for (int at_end = 0; at_end < 2; at_end++)
                        for (int isa = 0; isa < isa_count; isa++) {
                            char *pa = edge(a, from.bytes, at_end), *pb = edge(b, from.bytes, at_end);
                            char *pm = edge(m, where.bytes, at_end), *py = edge(y, to.bytes, at_end);
                            char expected[MOST * ROWS * 8];
                            if (isa == 0) {
                                readable(a, 1), readable(b, 1), readable(m, 1);
                                spread(&p, pa, from, p.a, n, p.item);
                                spread(&p, pb, from, p.b, n, p.item);
                                spread(&p, pm, where, p.mask, n, 1);
                                readable(a, 0), readable(b, 0), readable(m, 0);
                            }
                            spread(&p, expected, to, p.want, p.out, p.item);
                            csm_view va = view_of(pa, from), vb = view_of(pb, from), vy = view_of(py, to);
                            csm_view vm = view_of(pm, where);
                            csm_options o = options_of(&p, &vm, 1);
                            use(isas[isa]);
                            same &= call(op, dtype, &shape, &va, &vb, &vy, &o) == CSM_OK;
                            same &= memcmp(py, expected, to.bytes) == 0;
                        }
                    check(same, "%s_%s between guard pages, n=%zu variant %d", ops[op], dtypes[dtype], n, variant);
                    drop(&p);
                }
    unfence(a), unfence(b), unfence(m), unfence(y);
}

/* Each allocation in turn fails: the status says so, nothing leaks, the next call is right. */
static void test_no_memory(void) {
    static const struct {
        size_t r1, r2, n;
        int layout, masked, kind;
    } cases[] = {{1, 3, 10, STRIDED, 0, NORMAL},     {1, 4, 100, C, 1, NORMAL},   {1, 40, 100, TILE0, 0, NORMAL},
                 {1, 3, 10, C, 0, BEYOND},           {1, 2, 5000, C, 0, NORMAL},  {1, 80, 1000, C, 0, BEYOND},
                 {1, 2, 50000, STRIDED, 0, NORMAL},  {1, 2, 50000, C, 0, NORMAL}, {1, 64, 1000, TILE0, 0, BEYOND},
                 {1, 1, (1 << 20) + 5, C, 0, NORMAL}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int threads = 1; threads <= 4; threads += 3) {
                int dtype = cases[c].n > 100000 ? 0 : (op + (int)c) % CSM_DTYPE_COUNT;
                problem p = make(op, dtype, cases[c].kind, cases[c].r1, cases[c].r2, cases[c].n, 1, cases[c].masked);
                answer(&p);
                place from = lay(cases[c].layout, p.r1, p.r2, p.n, p.item);
                place where = lay(cases[c].layout, p.r1, p.r2, p.n, 1);
                place to = lay(cases[c].layout, p.r1, p.r2, p.out, p.item);
                char *a = need(from.bytes), *b = need(from.bytes), *m = need(where.bytes), *y = need(to.bytes);
                spread(&p, a, from, p.a, p.n, p.item);
                spread(&p, b, from, p.b, p.n, p.item);
                spread(&p, m, where, p.mask, p.n, 1);
                csm_shape shape = shape_of(&p);
                csm_view va = view_of(a, from), vb = view_of(b, from), vy = view_of(y, to), vm = view_of(m, where);
                csm_options o = options_of(&p, &vm, threads);
                arrangement l = {cases[c].layout, cases[c].layout, 0};
                use(isas[isa_count - 1]);
                for (long n = 1; n < 20; n++) {
                    arm(n);
                    csm_status status = call(op, dtype, &shape, &va, &vb, &vy, &o);
                    disarm();
                    long refusals = failed_requests, left = live;
                    check(left == 0, "%s_%s case %zu: %ld leaked when allocation %ld fails", ops[op], dtypes[dtype], c,
                          left, n);
                    check(status == (refusals ? CSM_NO_MEMORY : CSM_OK),
                          "%s_%s case %zu: status %d when allocation %ld fails", ops[op], dtypes[dtype], c, status, n);
                    if (!refusals) break;
                    if (n == 1) compare(&p, l, isas[isa_count - 1], threads, 0);
                }
                free(a), free(b), free(m), free(y);
                drop(&p);
            }
}

/* The caller's scratch: never exceeded, never too small when as large as promised, refused when smaller. */
static void test_scratch(void) {
    static const struct {
        size_t r2, n;
        int layout, masked, kind;
    } cases[] = {{1, 1, C, 0, NORMAL},          {3, 10, STRIDED, 0, BEYOND},   {40, 100, C, 1, SPECIAL},
                 {40, 100, TILE0, 0, BEYOND},   {2, 4096, STRIDED, 0, BEYOND}, {9, 4096, TILE0, 0, NORMAL},
                 {9, 4096, TILE0, 1, BEYOND},   {3, 4097, C, 0, WIDE},         {3, 70000, STRIDED, 1, NORMAL},
                 {2, 140000, STRIDED, 0, WIDE}, {80, 1000, C, 0, BEYOND},      {1, 300000, C, 0, BEYOND}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int op = 0; op < CSM_OP_COUNT; op++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
                for (int threads = 1; threads <= 3; threads += 2) {
                    problem p = make(op, dtype, cases[c].kind, 1, cases[c].r2, cases[c].n, 1, cases[c].masked);
                    answer(&p);
                    place from = lay(cases[c].layout, 1, p.r2, p.n, p.item),
                          where = lay(cases[c].layout, 1, p.r2, p.n, 1);
                    place to = lay(cases[c].layout, 1, p.r2, p.out, p.item);
                    char *a = need(from.bytes), *b = need(from.bytes), *m = need(where.bytes), *y = need(to.bytes);
                    char *expected = need(to.bytes), text[128];
                    spread(&p, a, from, p.a, p.n, p.item);
                    spread(&p, b, from, p.b, p.n, p.item);
                    spread(&p, m, where, p.mask, p.n, 1);
                    memset(y, 0x5a, to.bytes);
                    memset(expected, 0x5a, to.bytes);
                    csm_shape shape = shape_of(&p);
                    csm_view va = view_of(a, from), vb = view_of(b, from), vy = view_of(y, to), vm = view_of(m, where);
                    csm_options o = options_of(&p, &vm, threads);
                    size_t size = csm_scratch_size(&shape, threads);
                    fenced f = fence(size + 64);
                    o.scratch = f.end - size;
                    o.scratch_size = size - 1;
                    describe(&p, text, sizeof text);
                    use(isas[isa_count - 1]);
                    check(size % 64 == 0, "%s: scratch of %zu bytes", text, size);
                    check(call(op, dtype, &shape, &va, &vb, &vy, &o) == CSM_SMALL_SCRATCH &&
                              !memcmp(y, expected, to.bytes),
                          "%s: scratch of %zu bytes taken for %zu", text, size - 1, size);
                    memset(f.begin, 0x77, (size_t)(f.end - f.begin) - size);
                    o.scratch_size = size;
                    spread(&p, expected, to, p.want, p.out, p.item);
                    arm(-1);
                    csm_status status = call(op, dtype, &shape, &va, &vb, &vy, &o);
                    disarm();
                    check(status == CSM_OK && !memcmp(y, expected, to.bytes), "%s in the caller's scratch: %d", text,
                          status);
                    check(asked == 0, "%s allocates %ld times beside the caller's scratch", text, (long)asked);
                    int clean = 1;
                    for (char *q = f.begin; q < f.end - size; q++) clean &= *q == 0x77;
                    check(clean, "%s writes before the caller's scratch", text);
                    unfence(f);
                    free(a), free(b), free(m), free(y), free(expected);
                    drop(&p);
                }
}

#if defined(__x86_64__)
static unsigned fp_control(void) { return _mm_getcsr() & ~0x3fu; } /* without the sticky exception flags */
static void fp_set(unsigned c) { _mm_setcsr(c); }
enum { FP_FLUSH = 0x8040 | 0x6000 }; /* flush to zero, denormals are zero, round toward zero */
#elif defined(__aarch64__)
static unsigned fp_control(void) {
    uint64_t c;
    __asm__ volatile("mrs %0, fpcr" : "=r"(c));
    return (unsigned)c;
}
static void fp_set(unsigned c) { __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)c)); }
enum { FP_FLUSH = 1 << 24 | 3 << 22 };
#else
static unsigned fp_control(void) { return 0; }
static void fp_set(unsigned c) { (void)c; }
enum { FP_FLUSH = 0 };
#endif

/* The caller's flush-to-zero and rounding mode neither matter nor change. */
static void test_environment(void) {
    for (int op = 0; op < CSM_OP_COUNT; op++)
        for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
            for (int threads = 1; threads <= 2; threads++) {
                problem p = make(op, dtype, WIDE, 1, 60, 1000, 1, 0);
                answer(&p);
                place l = lay(C, 1, p.r2, p.n, p.item), to = lay(C, 1, p.r2, p.out, p.item);
                char *y = need(to.bytes);
                csm_shape shape = shape_of(&p);
                csm_view a = view_of(p.a, l), b = view_of(p.b, l), vy = view_of(y, to);
                csm_options o = options_of(&p, NULL, threads);
                use(isas[isa_count - 1]);
                unsigned before = fp_control();
                fp_set(before | FP_FLUSH);
                unsigned set = fp_control();
                csm_status status = call(op, dtype, &shape, &a, &b, &vy, &o);
                unsigned after = fp_control();
                fp_set(before);
                check(status == CSM_OK && !memcmp(y, p.want, to.bytes), "%s_%s under flush-to-zero", ops[op],
                      dtypes[dtype]);
                check(set == after, "%s_%s changes the control word %x to %x", ops[op], dtypes[dtype], set, after);
                free(y);
                drop(&p);
            }
}

typedef struct visits {
    int count, stop_at;
    unsigned control;
    int same;
} visits;
static int visit(void *context) {
    visits *v = context;
    v->same &= fp_control() == v->control;
    return ++v->count >= v->stop_at;
}
static void test_interrupt(void) {
    const size_t rows = 6000, n = 1000;
    csm_shape shape = {n, 1, {rows}};
    float *x = need(rows * n * 4), *y = need(rows * n * 4);
    memset(y, 0, rows * n * 4);
    seed(7);
    for (size_t i = 0; i < rows * n; i++) x[i] = (float)(next() >> 20) / 64;
    csm_view vx = csm_contiguous(&shape, n, x, 4), vy = csm_contiguous(&shape, n, y, 4);
    use("scalar"); /* slow enough to be asked */
    for (int threads = 1; threads <= 2; threads++) {
        csm_options o = CSM_OPTIONS_INIT;
        visits v = {0, 1, fp_control(), 1};
        o.threads = threads;
        o.interrupt = visit;
        o.interrupt_context = &v;
        memset(y, 0, rows * n * 4);
        csm_status status = csm_softmax_f32(&shape, &vx, &vy, &o);
        check(status == CSM_INTERRUPTED && v.count == 1, "interrupt: status %d after %d questions", status, v.count);
        check(v.same, "the callback sees another control word");
        check(y[rows * n - 1] == 0 || threads > 1, "interrupt: the call went to the end");
        v = (visits){0, 1 << 30, fp_control(), 1};
        status = csm_softmax_f32(&shape, &vx, &vy, &o);
        check(status == CSM_OK && v.count > 0, "interrupt declined: status %d after %d questions", status, v.count);
    }
    /* one long row */
    shape = (csm_shape){rows * n, 0, {0}};
    vx = csm_contiguous(&shape, rows * n, x, 4), vy = csm_contiguous(&shape, rows * n, y, 4);
    csm_options o = CSM_OPTIONS_INIT;
    visits v = {0, 1, fp_control(), 1};
    o.interrupt = visit;
    o.interrupt_context = &v;
    csm_status status = csm_softmax_f32(&shape, &vx, &vy, &o);
    check(status == CSM_INTERRUPTED && v.count == 1, "interrupt in a row: status %d after %d questions", status,
          v.count);
    free(x), free(y);
}

/* Every unit is computed once, whatever the counts; and who waits for nobody computes the shares of the late. */
typedef struct shared_work {
    size_t units, piece;
    int late; /* this thread's first piece lasts until all others are done */
    atomic_int *times;
    atomic_size_t done;
} shared_work;
static csm_status shared_body(void *context, size_t begin, size_t end, int thread) {
    shared_work *w = context;
    if (begin >= end || end - begin > w->piece || end > w->units) return CSM_BAD_SHAPE;
    for (size_t i = begin; i < end; i++) atomic_fetch_add(&w->times[i], 1);
    size_t done = atomic_fetch_add(&w->done, end - begin) + end - begin;
    if (thread == w->late) {
        double limit = csm_now() + 10;
        while ((done = atomic_load(&w->done)) < w->units && csm_now() < limit) usleep(100);
        if (done < w->units) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
static void test_shares(void) {
    enum { MOST = 5000 };
    static atomic_int times[MOST];
    static const size_t units[] = {2, 3, 7, 16, 64, 65, 127, 1000, 4999}, pieces[] = {1, 5, 64, 100000};
    static const int counts[] = {1, 2, 3, 8, 63, 64, 65, 100};
    for (size_t u = 0; u < sizeof units / sizeof *units; u++)
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++)
            for (size_t t = 0; t < sizeof counts / sizeof *counts; t++)
                for (int late = -1; late < (csm_openmp() && counts[t] <= 3 && counts[t] > 1 ? counts[t] : 0); late++) {
                    for (size_t i = 0; i < units[u]; i++) atomic_store(&times[i], 0);
                    shared_work w = {.units = units[u], .piece = pieces[p], .late = late, .times = times};
                    csm_interrupt none = {0};
                    csm_status status = csm_parallel(units[u], pieces[p], counts[t], shared_body, &w, &none);
                    int once = status == CSM_OK;
                    for (size_t i = 0; i < units[u]; i++) once &= atomic_load(&times[i]) == 1;
                    check(once, "%zu units in pieces of %zu on %d threads, %d late: status %d", units[u], pieces[p],
                          counts[t], late, status);
                    if (!once) return; /* one has waited for long */
                }
}

/* The maximum is that of the numbers: NaN is dropped, also before the first cache line, and nothing else with it. */
static void test_maximum(void) {
    static const size_t lengths[] = {5, 40, 511, 512, 2048, 4099}, offsets[] = {0, 1, 3, 4, 8};
    _Alignas(64) static char memory[(4099 + 8) * 8];
    for (int i = 0; i < isa_count; i++)
        for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++)
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
                for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
                    const size_t n = lengths[l];
                    char *x = memory + offsets[o] * sizes_of[dtype];
                    use(isas[i]);
                    for (size_t nan = 0; nan < 3; nan++)
                        for (size_t most = 0; most < n; most += n < 100 ? 1 : 61) {
                            for (size_t j = 0; j < n; j++) put(dtype, x, j, -100);
                            put(dtype, x, most, -3);
                            if (nan != most) put(dtype, x, nan, NAN);
                            const double got = csm_current_table()->max[dtype](x, n);
                            check(got == -3, "maximum of %zu %s, %s, %zu behind a line, NaN at %zu, -3 at %zu: %g", n,
                                  dtypes[dtype], isas[i], offsets[o], nan, most, got);
                        }
                }
}

static void test_arguments(void) {
    float x[4] = {1, 2, 3, 4}, y[4] = {-9, -9, -9, -9};
    csm_shape one = {4, 0, {0}};
    csm_view vx = csm_contiguous(&one, 4, x, 4), vy = csm_contiguous(&one, 4, y, 4);
    csm_view zeros = {x, 0, {0}};
    for (int op = 0; op < CSM_OP_COUNT; op++)
        for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++) {
            csm_shape deep = {4, CSM_MAX_NDIM + 1, {1}}, vast = {(size_t)1 << 40, 2, {(size_t)1 << 20, 1 << 10}};
            csm_shape wrap = {4, 2, {(size_t)1 << 32, (size_t)1 << 32}}, wide = {SIZE_MAX, 0, {0}},
                      huge = {SIZE_MAX / 2, 1, {3}};
            const csm_shape *bad[] = {&deep, &vast, &wrap, &wide, &huge};
            for (int i = 0; i < 5; i++)
                check(call(op, dtype, bad[i], &zeros, &zeros, &zeros, NULL) == CSM_BAD_SHAPE, "%s_%s: bad shape %d",
                      ops[op], dtypes[dtype], i);
            const double never[] = {-1, -0x1p-1074, -INFINITY, NAN}, gradient[] = {0, -0.0, INFINITY};
            csm_options o = CSM_OPTIONS_INIT;
            for (int i = 0; i < 4; i++) {
                o.temperature = never[i];
                check(call(op, dtype, &one, &vx, &vx, &vy, &o) == CSM_BAD_TEMPERATURE, "%s: T = %g", ops[op], never[i]);
            }
            for (int i = 0; i < 3 && has_b[op]; i++) {
                o.temperature = gradient[i];
                check(call(op, dtype, &one, &vx, &vx, &vy, &o) == CSM_BAD_TEMPERATURE, "%s: T = %g", ops[op],
                      gradient[i]);
            }
            csm_shape none = {4, 2, {3, 0}}, no_class = {0, 1, {3}};
            check(call(op, dtype, &none, &zeros, &zeros, &zeros, NULL) == CSM_OK, "%s_%s: no rows", ops[op],
                  dtypes[dtype]);
            check(y[0] == -9 && y[1] == -9 && y[2] == -9 && y[3] == -9, "%s_%s: writes after an error", ops[op],
                  dtypes[dtype]);
            if (keeps[op]) {
                check(call(op, dtype, &no_class, &zeros, &zeros, &zeros, NULL) == CSM_OK, "%s_%s: no classes", ops[op],
                      dtypes[dtype]);
            } else {
                double all[4];
                csm_view lse = {all, 0, {(ptrdiff_t)sizes_of[dtype]}};
                check(call(op, dtype, &no_class, &zeros, NULL, &lse, NULL) == CSM_OK, "%s_%s: no classes", ops[op],
                      dtypes[dtype]);
                for (size_t i = 0; i < 3; i++) check(get(dtype, all, i) == -INFINITY, "logsumexp of nothing");
            }
        }
    csm_options none = CSM_OPTIONS_INIT;
    none.threads = -3; /* an upper bound, at least 1 */
    check(csm_softmax_f32(&one, &vx, &vy, &none) == CSM_OK && y[3] > 0.6f, "threads = -3");
    const char *before = csm_isa();
    check(csm_select_isa("mmx") == -1 && csm_isa() == before, "an unknown instruction set");
    check(!csm_isa_built("mmx") && !csm_isa_available("mmx"), "an unknown instruction set");
    check(csm_isa_available("scalar") && csm_isa_built("scalar"), "scalar is always there");
    for (int i = 0; i < ALL_ISAS; i++)
        if (!csm_isa_available(all_isas[i])) check(csm_select_isa(all_isas[i]) == -1, "%s selected", all_isas[i]);
    for (int s = CSM_OK; s <= CSM_SMALL_SCRATCH; s++)
        check(strcmp(csm_status_text((csm_status)s), "unknown status") != 0, "status %d has no text", s);
    check(strcmp(csm_status_text((csm_status)99), "unknown status") == 0, "status 99 has a text");
    csm_shape many = {4, 64, {0}};
    for (int i = 0; i < 64; i++) many.shape[i] = 1;
    check(csm_softmax_f32(&many, &vx, &vy, NULL) == CSM_OK, "64 axes");
}

/* test_loss.c: cross-entropy; counts[0] passed, counts[1] failed */
void test_loss(size_t every, uint64_t *hash, long counts[2]);
void test_sparse(size_t every, uint64_t *hash, long counts[2]);

int main(int argc, char **argv) {
    size_t every = argc > 2 && !strcmp(argv[1], "--every") ? (size_t)strtoul(argv[2], NULL, 10) : 1;
    if (every < 1) every = 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("default %s; compared:", csm_isa());
    for (int i = 0; i < ALL_ISAS; i++)
        if (csm_isa_available(all_isas[i])) {
            isas[isa_count++] = all_isas[i];
            printf(" %s", all_isas[i]);
        }
    printf("\n");
    test_arguments();
    test_maximum();
    test_grid(every);
    test_special(every > 4 ? every / 4 : 1);
    test_accuracy(every > 1 ? 3 : 1);
    test_guard_pages(every);
    test_threads(every > 8 ? 7 : 1);
    long loss[2] = {0, 0};
    test_loss(every, &hash, loss);
    test_sparse(every, &hash, loss);
    passed += loss[0];
    failed += loss[1];
    printf("hash %016llx\n", (unsigned long long)hash);
    test_no_memory();
    if (every < 20) test_scratch();
    test_environment();
    test_interrupt();
    test_shares();
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0;
}
