/* The kernels of the soft cap for one storage type T: tanh.inc.h over blocks of a row. */
#ifndef FN
#error "softcap.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

INLINE double FN(cap_block)(const T *x, REAL *y, REAL *slope, size_t k, const csm_softcap *c, const int with_slope) {
    enum { GROUP = V(SIDE) *V(W) };
    V(t) far = V(zero)(), from[V(SIDE)], to[V(SIDE)], steep[V(SIDE)];
    size_t i = 0;
    UNROLL
    for (int v = 0; v < V(SIDE); v++) steep[v] = V(zero)();
    for (; i + GROUP <= k; i += GROUP) {
        UNROLL
        for (int v = 0; v < V(SIDE); v++) from[v] = LOAD(x + i + (size_t)v * V(W));
        far = V(cap_group)(V(SIDE), from, to, steep, with_slope, far, c);
        UNROLL
        for (int v = 0; v < V(SIDE); v++) {
            V(STORE_REAL)(y + i + (size_t)v * V(W), to[v]);
            if (with_slope) V(STORE_REAL)(slope + i + (size_t)v * V(W), steep[v]);
        }
    }
    for (; i < k; i += V(W)) {
        const size_t left = k - i < V(W) ? k - i : V(W);
        from[0] = left == V(W) ? LOAD(x + i) : LOAD_PART(x + i, left, V(zero)());
        far = V(cap_group)(1, from, to, steep, with_slope, far, c);
        if (left == V(W)) V(STORE_REAL)(y + i, to[0]);
        else V(STORE_PART_REAL)(y + i, left, to[0]);
        if (!with_slope) continue;
        if (left == V(W)) V(STORE_REAL)(slope + i, steep[0]);
        else V(STORE_PART_REAL)(slope + i, left, steep[0]);
    }
    return (double)V(top)(far);
}
static double FN(softcap_cap)(const void *x, void *y, void *slope, size_t k, const csm_softcap *c) {
    return slope ? FN(cap_block)(x, y, slope, k, c, 1) : FN(cap_block)(x, y, NULL, k, c, 0);
}

static void FN(softcap_uncap)(const void *gradient, const void *of, void *to, size_t k) {
    const REAL *g = gradient, *slope = of;
    T *y = to;
    size_t i = 0;
    for (; i + V(W) <= k; i += V(W)) STORE(y + i, V(mul)(V(LOAD_REAL)(g + i), V(LOAD_REAL)(slope + i)));
    if (i == k) return;
    const V(t) a = V(LOAD_PART_REAL)(g + i, k - i, V(zero)()), b = V(LOAD_PART_REAL)(slope + i, k - i, V(zero)());
    STORE_PART(y + i, k - i, V(mul)(a, b));
}
