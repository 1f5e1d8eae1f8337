/* The kernel of the soft cap for one storage type T: tanh.inc.h over blocks of a row. */
#ifndef FN
#error "softcap.inc.h needs FN(name), T, LOAD, LOAD_PART"
#endif

INLINE csm_capped FN(cap_block)(const T *x, REAL *y, REAL *slope, size_t k, const csm_softcap *c,
                                const int with_slope) {
    enum { GROUP = V(SIDE) *V(W) };
    const V(cap_constants) s = V(cap_constants_of)(c);
    V(t) far = V(zero)(), max = V(set)(-CSM_INF), from[V(SIDE)], to[V(SIDE)], steep[V(SIDE)];
    size_t i = 0;
    UNROLL
    for (int v = 0; v < V(SIDE); v++) steep[v] = V(zero)();
    for (; i + GROUP <= k; i += GROUP) {
        UNROLL
        for (int v = 0; v < V(SIDE); v++) from[v] = LOAD(x + i + (size_t)v * V(W));
        far = V(cap_group)(V(SIDE), from, to, steep, with_slope, far, &s, c);
        UNROLL
        for (int v = 0; v < V(SIDE); v++) {
            max = V(max)(to[v], max);
            V(STORE_REAL)(y + i + (size_t)v * V(W), to[v]);
            if (with_slope) V(STORE_REAL)(slope + i + (size_t)v * V(W), steep[v]);
        }
    }
    while (i < k && k >= V(W)) { /* the last vector overlaps the one before it */
        if (k - i < V(W)) i = k - V(W);
        from[0] = LOAD(x + i);
        far = V(cap_group)(1, from, to, steep, with_slope, far, &s, c);
        max = V(max)(to[0], max);
        V(STORE_REAL)(y + i, to[0]);
        if (with_slope) V(STORE_REAL)(slope + i, steep[0]);
        i += V(W);
    }
    if (i < k) {
        from[0] = LOAD_PART(x, k, V(zero)());
        far = V(cap_group)(1, from, to, steep, with_slope, far, &s, c);
        V(STORE_PART_REAL)(y, k, to[0]);
        if (with_slope) V(STORE_PART_REAL)(slope, k, steep[0]);
    }
    return (csm_capped){.far = (double)V(top)(far), .max = k >= V(W) ? (double)V(top)(max) : CSM_NAN};
}
static csm_capped FN(softcap_cap)(const void *x, void *y, void *slope, size_t k, const csm_softcap *c) {
    return slope ? FN(cap_block)(x, y, slope, k, c, 1) : FN(cap_block)(x, y, NULL, k, c, 0);
}
