/* The softmax family in the C core: every operation, dtype, layout, thread count and instruction set against the scalar
 * unit on contiguous rows, byte for byte.  Called by test_core.c. */
#include "problem.h"

#include <math.h>

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

/* A special value at every index, in rows and in tiles, has the effect that the documentation of csoftmax.softmax
 * states. */
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
                                else if (which == 1) ok &= op == CSM_OP_logsumexp ? y == INFINITY : y != y;
                                else if (n == 1) ok &= op == CSM_OP_logsumexp ? y == -INFINITY : y != y;
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

/* Compares with long double: all units could agree and be wrong.  tests/properties/test_accuracy.py measures fully. */
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
                        if (x == max && !taken) taken = 1; /* one maximum is left out of the sum, for log1p */
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

/* No access outside the arrays, on either side; inputs are read-only. */
static void test_guard_pages(size_t every) {
    enum { MAX_LENGTH = 140, ROWS = 17 };
    fenced a = fence(MAX_LENGTH * ROWS * 8), b = fence(MAX_LENGTH * ROWS * 8), m = fence(MAX_LENGTH * ROWS),
           y = fence(MAX_LENGTH * ROWS * 8);
    size_t at = 0;
    for (size_t n = 1; n <= MAX_LENGTH; n++)
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
                            char expected[MAX_LENGTH * ROWS * 8];
                            if (isa == 0) {
                                set_writable(a, 1), set_writable(b, 1), set_writable(m, 1);
                                spread(&p, pa, from, p.a, n, p.item);
                                spread(&p, pb, from, p.b, n, p.item);
                                spread(&p, pm, where, p.mask, n, 1);
                                set_writable(a, 0), set_writable(b, 0), set_writable(m, 0);
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

void test_softmax(size_t every);
void test_softmax(size_t every) {
    test_grid(every);
    test_special(every > 4 ? every / 4 : 1);
    test_accuracy(every > 1 ? 3 : 1);
    test_guard_pages(every);
    test_threads(every > 8 ? 7 : 1);
}
