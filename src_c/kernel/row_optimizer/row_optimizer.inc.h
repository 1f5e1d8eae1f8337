/* One step of an optimiser on a contiguous row of weights w, one storage type T; the gradient g and the state have the
 * compute type.
 *
 *   descend   w' = decay w - rate g: SGD, and row-wise Adagrad, whose rate is eta / sqrt(G + 1e-8)
 *   adagrad   G' = G + g^2,  w' = decay w - rate g / sqrt(G' + 1e-8)
 *   adam      m' = 0.9 m + 0.1 g,  v' = 0.999 v + 0.001 g^2,  w' = decay w - rate m' / (root sqrt(v') + 1e-8)
 *   decay     w' = decay w
 *
 * Passes: one over w, g and the state; row-wise Adagrad has one over g before it, for the sum of squares.
 * Accumulators: the sum of squares has 16 lanes of float (8 of double), element j in lane j mod 16, each a chain of
 * fma, added in a fixed tree; everything else is elementwise.  The bits are those of the scalar unit everywhere.
 * NaN: a NaN or infinite g makes w and the state of its element NaN; every NaN is the canonical one.  In float, squares
 * overflow from |g| = 1.8e19 on; the row's rate is 0 then.
 * Measured error of a step (tests/ops/test_row_optimizer.py), in ULP of the larger of |decay w| and |rate direction|:
 * SGD 2.0, row-wise Adagrad 4.5, Adagrad 3.8, Adam 5.1; of the mean square of 1,000 elements 2.5, in double 3.7.
 */
#ifndef FN
#error "row_optimizer.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

#ifndef CSM_PUT
/* Stores k elements at i, all or part of a vector. */
#define CSM_PUT(store, part, p, v)        \
    do {                                  \
        if (k == V(W)) store((p) + i, v); \
        else part((p) + i, k, v);         \
    } while (0)
#define CSM_TAKE(load, part, p) (k == V(W) ? load((p) + i) : part((p) + i, k, V(zero)()))
#define CSM_CANONICAL(v) V(select)(V(unordered)(v, v), V(set)(CSM_NAN), v)
#endif

static double FN(optimizer_squares)(const void *from, size_t n) {
    enum { LANES = sizeof(REAL) == 4 ? 16 : 8, VECTORS = LANES / V(W) };
    const REAL *g = from;
    V(t) sum[VECTORS];
    REAL lane[LANES];
    for (int v = 0; v < VECTORS; v++) sum[v] = V(zero)();
    for (size_t begin = 0; begin < n; begin += LANES) {
        for (int v = 0; v < VECTORS; v++) {
            const size_t i = begin + (size_t)v * V(W);
            if (i >= n) break;
            const size_t k = n - i < V(W) ? n - i : V(W);
            const V(t) a = CSM_TAKE(V(LOAD_REAL), V(LOAD_PART_REAL), g);
            sum[v] = V(fma)(a, a, sum[v]);
        }
    }
    CSM_FOLD(sum, lane);
    return (double)lane[0];
}

static void FN(optimizer_descend)(void *weights, const void *gradient, size_t n, const csm_row_step *step) {
    T *w = weights;
    const REAL *g = gradient;
    const V(t) decay = V(set)(step->decay), rate = V(set)(step->rate);
    for (size_t i = 0; i < n; i += V(W)) {
        const size_t k = n - i < V(W) ? n - i : V(W);
        const V(t) a = CSM_TAKE(V(LOAD_REAL), V(LOAD_PART_REAL), g);
        const V(t) y = V(fnma)(rate, a, V(mul)(decay, CSM_TAKE(LOAD, LOAD_PART, w)));
        CSM_PUT(STORE, STORE_PART, w, CSM_CANONICAL(y));
    }
}

static void FN(optimizer_adagrad)(void *weights, const void *gradient, void *state, size_t n,
                                  const csm_row_step *step) {
    T *w = weights;
    const REAL *g = gradient;
    REAL *squares = state;
    const V(t) decay = V(set)(step->decay), rate = V(set)(step->rate), start = V(set)(CSM_ADAGRAD_START);
    for (size_t i = 0; i < n; i += V(W)) {
        const size_t k = n - i < V(W) ? n - i : V(W);
        const V(t) a = CSM_TAKE(V(LOAD_REAL), V(LOAD_PART_REAL), g);
        const V(t) sum = V(fma)(a, a, CSM_TAKE(V(LOAD_REAL), V(LOAD_PART_REAL), squares));
        const V(t) direction = V(div)(a, V(sqrt)(V(add)(sum, start)));
        const V(t) y = V(fnma)(rate, direction, V(mul)(decay, CSM_TAKE(LOAD, LOAD_PART, w)));
        CSM_PUT(V(STORE_REAL), V(STORE_PART_REAL), squares, CSM_CANONICAL(sum));
        CSM_PUT(STORE, STORE_PART, w, CSM_CANONICAL(y));
    }
}

static void FN(optimizer_adam)(void *weights, const void *gradient, void *state, void *second, size_t n,
                               const csm_row_step *step) {
    T *w = weights;
    const REAL *g = gradient;
    REAL *mean = state, *square = second;
    const V(t) decay = V(set)(step->decay), rate = V(set)(step->rate), root = V(set)(step->root);
    const V(t) keep = V(set)(CSM_ADAM_FIRST), take = V(set)(1 - CSM_ADAM_FIRST);
    const V(t) keep_square = V(set)(CSM_ADAM_SECOND), take_square = V(set)(1 - CSM_ADAM_SECOND);
    const V(t) epsilon = V(set)(CSM_ADAM_EPSILON);
    for (size_t i = 0; i < n; i += V(W)) {
        const size_t k = n - i < V(W) ? n - i : V(W);
        const V(t) a = CSM_TAKE(V(LOAD_REAL), V(LOAD_PART_REAL), g);
        const V(t) m = V(fma)(take, a, V(mul)(keep, CSM_TAKE(V(LOAD_REAL), V(LOAD_PART_REAL), mean)));
        const V(t) v =
            V(fma)(V(mul)(take_square, a), a, V(mul)(keep_square, CSM_TAKE(V(LOAD_REAL), V(LOAD_PART_REAL), square)));
        const V(t) direction = V(div)(m, V(fma)(root, V(sqrt)(v), epsilon));
        const V(t) y = V(fnma)(rate, direction, V(mul)(decay, CSM_TAKE(LOAD, LOAD_PART, w)));
        CSM_PUT(V(STORE_REAL), V(STORE_PART_REAL), mean, CSM_CANONICAL(m));
        CSM_PUT(V(STORE_REAL), V(STORE_PART_REAL), square, CSM_CANONICAL(v));
        CSM_PUT(STORE, STORE_PART, w, CSM_CANONICAL(y));
    }
}

static void FN(optimizer_decay)(void *weights, size_t n, const csm_row_step *step) {
    T *w = weights;
    const V(t) decay = V(set)(step->decay);
    for (size_t i = 0; i < n; i += V(W)) {
        const size_t k = n - i < V(W) ? n - i : V(W);
        const V(t) y = V(mul)(decay, CSM_TAKE(LOAD, LOAD_PART, w));
        CSM_PUT(STORE, STORE_PART, w, CSM_CANONICAL(y));
    }
}
