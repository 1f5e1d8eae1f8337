/* Problems of the softmax family for the tests of the C core (problem.c). */
#ifndef CSM_TEST_PROBLEM_H
#define CSM_TEST_PROBLEM_H

#include "../../src_c/core/call.h"
#include "../../src_c/core/extension.h"

#include <stdatomic.h>
#include <stdlib.h>

/* Checks are counted; the first failures are printed. */
extern long passed, failed;
__attribute__((format(printf, 2, 3))) int check(int ok, const char *format, ...);

/* Allocations between arm() and disarm() are counted, and the one with number `at` fails. */
extern atomic_long asked, live, failed_requests;
void arm(long at);
void disarm(void);
void *need(size_t size); /* aborts without memory */

#define CSM_COUNT_ISA(name, bits) +1
enum { ALL_ISAS = 0 CSM_ISAS(CSM_COUNT_ISA) };

enum { NORMAL, TIES, WIDE, BEYOND, SPECIAL, AHEAD, KINDS };

/* One problem in canonical form: contiguous rows, and the scalar unit's result. */
typedef struct problem {
    int op, dtype, kind, masked;
    size_t r1, r2, n, rows, item, out; /* out: elements per row of y */
    double temperature;
    char *a, *b, *mask, *want;
} problem;

/* The layout of an array of r1 x r2 rows of n in memory. */
typedef struct place {
    ptrdiff_t offset, s1, s2, axis;
    size_t bytes;
} place;
enum { C, PADDED, STRIDED, TILE, TILE0, TILE_REVERSED, REVERSED, UNALIGNED, TILE_UNALIGNED };

typedef struct arrangement {
    int a, y, in_place;
} arrangement;

enum { ARRANGEMENTS = 19 };

extern const char *const dtypes[CSM_DTYPE_COUNT], *const ops[CSM_OP_COUNT], *const all_isas[ALL_ISAS];
extern const size_t sizes_of[CSM_DTYPE_COUNT];
extern const int has_b[CSM_OP_COUNT], keeps[CSM_OP_COUNT]; /* has_b: two inputs */
extern const char *isas[ALL_ISAS]; /* those that this CPU has */
extern int isa_count; /* their number */
extern const arrangement arrangements[ARRANGEMENTS];
extern uint64_t hash; /* of all results of the scalar unit */

void use(const char *isa);
csm_status call(int op, int dtype, const csm_shape *, const csm_view *a, const csm_view *b, const csm_view *y,
                const csm_options *);

/* Numbers computed in integer arithmetic, equal on every machine. */
void seed(uint64_t);
uint32_t next(void);
void put(int dtype, void *to, size_t i, double v);
double get(int dtype, const void *from, size_t i);

problem make(int op, int dtype, int kind, size_t r1, size_t r2, size_t n, double temperature, int masked);
void describe(const problem *, char *text, size_t size);
void drop(problem *);
void answer(problem *); /* computes p->want */
void compare(const problem *, arrangement, const char *isa, int threads, int poison);

/* The parts of compare. */
place lay(int layout, size_t r1, size_t r2, size_t n, size_t item);
void spread(const problem *, char *to, place, const char *from, size_t n, size_t item);
csm_shape shape_of(const problem *);
csm_view view_of(char *data, place);
csm_options options_of(const problem *, const csm_view *where, int threads);

/* Memory between two inaccessible pages. */
typedef struct fenced {
    char *begin, *end;
    size_t page;
} fenced;
fenced fence(size_t size);
void unfence(fenced);
void set_writable(fenced, int writable);
char *edge(fenced, size_t size, int at_end);

#endif
