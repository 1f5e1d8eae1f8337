/* Projected gradient ascent on the cross-entropy of a linear layer, for a block of rows, one step at a time.
 *
 *   z_j = fixed_j + sum_i w_ji delta_i;  c_j = e^(z_j - m) / sum of these for j != y, m their largest logit;  c_y = 0
 *   g_i = sum_j c_j (w_ji - w_yi), which is the gradient over the probability of an error
 *   delta <- projection(delta + step direction(g))
 *
 * direction: sign (inf-norm); g over its length (2-norm); the sign of the largest |g_i|, of equal ones the first, alone
 * (1-norm).  projection: between `low` and `high` (inf-norm); scaled, or lowered as climb_kept says, and then between
 * `low` and `high` if there are any (2-norm, 1-norm).
 * The lanes of a vector are rows.  A block lies in scratch feature by feature, each with the numbers of all rows, so
 * that no sum crosses lanes and a row's numbers depend on that row alone.
 * Accumulators: chains of fma from +0, in the order of the features (z, to which `fixed` is added last) and of the
 * classes (g; the sum of exponentials has additions); squares of lengths in double, sizes of the 1-norm in REAL.
 * Passes: one over w and delta for each CLIMB_TILE of classes; one over w, w_y, delta, low and high.
 * NaN and infinity: a row whose z_y is not finite, or another one NaN or +inf, or all others -inf, has NaN in delta
 * from then on.
 * Error: z within (d + 1) u sum |w_ji delta_i| + u |z_j| (u: half the distance of 1 to the next number); g, given c,
 * within (classes + 1) u sum c_j |w_ji - w_yi|, so that it is 0 where no class with c_j > 0 differs from y; |delta| is
 * at most eps (1 + u) in the inf-norm, which rounds eps, and in the 2-norm, and eps (1 + d u) in the 1-norm.
 */
#ifndef V
#error "climb.inc.h needs V(name), REAL"
#endif

enum {
    V(CLIMB_ROWS) = CSM_CLIMB_BYTES / sizeof(REAL),
    V(CLIMB_VECTORS) = V(CLIMB_ROWS) / V(W),
    V(CLIMB_TILE) = V(CLIMB_VECTORS) < 8 ? 12 / V(CLIMB_VECTORS) : 1, /* of classes: ... */
    V(CLIMB_SUMS) = V(CLIMB_TILE) *V(CLIMB_VECTORS), /* ... their sums stay in registers */
    /* Vectors and features of sums over classes; w_y takes as many registers as they do. */
    V(CLIMB_GROUP) = V(CLIMB_VECTORS) == 4 ? 1
    : V(CLIMB_VECTORS) < 16                ? 2
                                           : V(CLIMB_VECTORS),
    V(CLIMB_FEATURES) = V(CLIMB_VECTORS) == 4 ? 7
    : V(CLIMB_VECTORS) < 16                   ? 4
                                              : 1,
};
#define EACH_OF_GROUP \
    UNROLL            \
    for (int v = 0; v < V(CLIMB_GROUP); v++)
#define EACH_VECTOR \
    UNROLL          \
    for (int v = 0; v < V(CLIMB_VECTORS); v++)
#define EACH_OF(count) \
    UNROLL             \
    for (int c = 0; c < (count); c++)

/* delta + step sign(g) between low and high; NaN in g or delta passes. */
INLINE V(t) V(climb_between)(V(t) delta, V(t) low, V(t) high) { return V(min)(high, V(max)(low, delta)); }
INLINE V(t) V(climb_along)(V(t) delta, V(t) g, V(t) low, V(t) high, V(t) step) {
    const V(t) up = V(keep)(V(not_le)(g, V(zero)()), step), down = V(keep)(V(not_le)(V(zero)(), g), step);
    const V(t) moved = V(climb_between)(V(add)(delta, V(sub)(up, down)), low, high);
    return V(select)(V(ordered)(g), moved, g);
}

/* The same for n numbers in any order. */
static void V(climb_numbers)(void *delta, const void *g, const void *low, const void *high, double step, size_t n) {
    REAL *to = delta;
    const REAL *slope = g, *lowest = low, *highest = high;
    const V(t) length = V(set)(step), zero = V(zero)();
    for (size_t i = 0; i < n; i += V(W)) {
        const size_t left = n - i;
        if (left >= V(W)) {
            V(STORE_REAL)(to + i, V(climb_along)(V(LOAD_REAL)(to + i), V(LOAD_REAL)(slope + i),
                                                 V(LOAD_REAL)(lowest + i), V(LOAD_REAL)(highest + i), length));
            continue;
        }
        const V(t) d = V(LOAD_PART_REAL)(to + i, left, zero), by = V(LOAD_PART_REAL)(slope + i, left, zero);
        const V(t) a = V(LOAD_PART_REAL)(lowest + i, left, zero), b = V(LOAD_PART_REAL)(highest + i, left, zero);
        V(STORE_PART_REAL)(to + i, left, V(climb_along)(d, by, a, b, length));
    }
}

/* Sums over the features of the numbers `a` of a block with `count` rows of w. */
INLINE void V(climb_dots)(const int count, const REAL *a, const REAL *w, size_t d, const REAL *fixed, REAL *to) {
    V(t) sum[V(CLIMB_SUMS)];
    EACH_OF(count) { EACH_VECTOR sum[c * V(CLIMB_VECTORS) + v] = V(zero)(); }
    for (size_t i = 0; i < d; i++) {
        V(t) x[V(CLIMB_VECTORS)];
        EACH_VECTOR x[v] = V(LOAD_REAL)(a + i * V(CLIMB_ROWS) + v * V(W));
        EACH_OF(count) {
            const V(t) by = V(set)((double)w[(size_t)c * d + i]);
            EACH_VECTOR sum[c * V(CLIMB_VECTORS) + v] = V(fma)(by, x[v], sum[c * V(CLIMB_VECTORS) + v]);
        }
    }
    EACH_OF(count) {
        EACH_VECTOR {
            const size_t at = (size_t)(c * V(CLIMB_ROWS) + v * V(W));
            const V(t) z = sum[c * V(CLIMB_VECTORS) + v];
            V(STORE_REAL)(to + at, V(add)(z, V(LOAD_REAL)(fixed + at)));
        }
    }
}
static void V(climb_logits)(const csm_climb_block *b, const REAL *a, const REAL *fixed, REAL *to) {
    const REAL *w = b->w;
    size_t j = 0;
    for (; b->classes - j >= V(CLIMB_TILE); j += V(CLIMB_TILE))
        V(climb_dots)(V(CLIMB_TILE), a, w + j * b->d, b->d, fixed + j * V(CLIMB_ROWS), to + j * V(CLIMB_ROWS));
    for (; j < b->classes; j++)
        V(climb_dots)(1, a, w + j * b->d, b->d, fixed + j * V(CLIMB_ROWS), to + j * V(CLIMB_ROWS));
}

/* Logits become the coefficients of the classes. */
static void V(climb_coefficients)(const csm_climb_block *b) {
    const REAL *label = b->label;
    REAL *z = b->logits;
    const size_t vectors = b->classes * V(CLIMB_VECTORS);
    const csm_temperature unit = {0};
    const V(shift) s = V(shift_by)(V(set)(EXP_EXPONENT_BIAS + EXP_BIAS), &unit, 0);
    V(t) target[V(CLIMB_VECTORS)], top[V(CLIMB_VECTORS)], sum[V(CLIMB_VECTORS)];
    V(t) zero_or_nan[V(CLIMB_VECTORS)]; /* z_y - z_y */
    EACH_VECTOR {
        target[v] = V(LOAD_REAL)(label + v * V(W));
        top[v] = V(set)(-CSM_INF);
        sum[v] = zero_or_nan[v] = V(zero)();
    }
    for (size_t j = 0; j < b->classes; j++) {
        const V(t) class = V(set)((double)j);
        REAL *at = z + j * V(CLIMB_ROWS);
        EACH_VECTOR {
            const V(t) x = V(LOAD_REAL)(at + v * V(W));
            const V(mask) is_target = V(eq)(class, target[v]);
            zero_or_nan[v] = V(select)(is_target, V(sub)(x, x), zero_or_nan[v]);
            const V(t) other = V(select)(is_target, V(set)(-CSM_INF), x);
            V(STORE_REAL)(at + v * V(W), other);
            top[v] = V(max)(top[v], other);
        }
    }
    for (size_t j = 0; j < b->classes; j++) {
        REAL *at = z + j * V(CLIMB_ROWS);
        EACH_VECTOR V(STORE_REAL)(at + v * V(W), V(sub)(V(LOAD_REAL)(at + v * V(W)), top[v]));
    }
    for (size_t i = 0; i < vectors; i += V(SIDE)) { /* V(SIDE) divides V(CLIMB_VECTORS) */
        V(t) e[V(SIDE)];
        UNROLL
        for (int k = 0; k < V(SIDE); k++) e[k] = V(LOAD_REAL)(z + (i + (size_t)k) * V(W));
        V(exp_values)(V(SIDE), e, s, 0);
        UNROLL
        for (int k = 0; k < V(SIDE); k++) V(STORE_REAL)(z + (i + (size_t)k) * V(W), e[k]);
    }
    for (size_t j = 0; j < b->classes; j++)
        EACH_VECTOR sum[v] = V(add)(sum[v], V(LOAD_REAL)(z + j * V(CLIMB_ROWS) + v * V(W)));
    EACH_VECTOR sum[v] = V(div)(V(set)(1), sum[v]);
    for (size_t j = 0; j < b->classes; j++) {
        const V(t) class = V(set)((double)j);
        REAL *at = z + j * V(CLIMB_ROWS);
        EACH_VECTOR {
            const V(t) share = V(mul)(V(LOAD_REAL)(at + v * V(W)), sum[v]);
            V(STORE_REAL)(at + v * V(W), V(select)(V(eq)(class, target[v]), zero_or_nan[v], share));
        }
    }
}

/* The gradients of `count` features from feature i on, of a group of rows from row `from` on. */
INLINE void V(climb_slopes)(const int count, const csm_climb_block *b, size_t i, size_t from, V(t) *g) {
    const REAL *coefficients = (const REAL *)b->logits + from, *w = (const REAL *)b->scaled + i;
    V(t) of_label[V(CLIMB_FEATURES) *V(CLIMB_GROUP)];
    EACH_OF(count) {
        EACH_OF_GROUP {
            const size_t at = (i + (size_t)c) * V(CLIMB_ROWS) + from + (size_t)(v * V(W));
            of_label[c * V(CLIMB_GROUP) + v] = V(LOAD_REAL)((const REAL *)b->label_weights + at);
            g[c * V(CLIMB_GROUP) + v] = V(zero)();
        }
    }
    for (size_t j = 0; j < b->classes; j++) {
        V(t) x[V(CLIMB_GROUP)];
        EACH_OF_GROUP x[v] = V(LOAD_REAL)(coefficients + j * V(CLIMB_ROWS) + v * V(W));
        EACH_OF(count) {
            const V(t) by = V(set)((double)w[j * b->d + (size_t)c]);
            EACH_OF_GROUP {
                const int at = c * V(CLIMB_GROUP) + v;
                g[at] = V(fma)(V(sub)(by, of_label[at]), x[v], g[at]);
            }
        }
    }
}
INLINE void V(climb_signs)(const int count, const csm_climb_block *b, size_t i, size_t from) {
    V(t) g[V(CLIMB_FEATURES) *V(CLIMB_GROUP)];
    const V(t) step = V(set)(b->step);
    V(climb_slopes)(count, b, i, from, g);
    EACH_OF(count) {
        EACH_OF_GROUP {
            const size_t at = (i + (size_t)c) * V(CLIMB_ROWS) + from + (size_t)(v * V(W));
            REAL *delta = (REAL *)b->delta + at;
            V(STORE_REAL)(delta, V(climb_along)(V(LOAD_REAL)(delta), g[c * V(CLIMB_GROUP) + v],
                                                V(LOAD_REAL)((const REAL *)b->low + at),
                                                V(LOAD_REAL)((const REAL *)b->high + at), step));
        }
    }
}
INLINE void V(climb_keep)(const int count, const csm_climb_block *b, size_t i, size_t from) {
    V(t) g[V(CLIMB_FEATURES) *V(CLIMB_GROUP)];
    V(climb_slopes)(count, b, i, from, g);
    EACH_OF(count) {
        EACH_OF_GROUP V(STORE_REAL)((REAL *)b->g + (i + (size_t)c) * V(CLIMB_ROWS) + from + (size_t)(v * V(W)),
                                    g[c * V(CLIMB_GROUP) + v]);
    }
}
/* Calls each(count, b, i, from) for all features and rows. */
#define CLIMB_EACH_GROUP(each, count) \
    for (size_t from = 0; from < V(CLIMB_ROWS); from += V(CLIMB_GROUP) *V(W)) each(count, b, i, from)
#define CLIMB_EACH_FEATURE(each)                                                                                 \
    do {                                                                                                         \
        size_t i = 0;                                                                                            \
        for (; b->d - i >= V(CLIMB_FEATURES); i += V(CLIMB_FEATURES)) CLIMB_EACH_GROUP(each, V(CLIMB_FEATURES)); \
        for (; i < b->d; i++) CLIMB_EACH_GROUP(each, 1);                                                         \
    } while (0)

/* The Euclidean length of each row of the block.  Squares that overflow or underflow are taken of a / top. */
static void V(climb_lengths)(const csm_climb_block *b, const REAL *a, double *length) {
    enum { PARTS = V(W) / v64_W, SUMS = V(CLIMB_ROWS) / v64_W };
    v64_t sum[SUMS];
    UNROLL
    for (int v = 0; v < SUMS; v++) sum[v] = v64_zero();
    for (size_t i = 0; i < b->d; i++) {
        EACH_VECTOR {
            v64_t part[PARTS];
            V(TO_DOUBLE)(V(LOAD_REAL)(a + i * V(CLIMB_ROWS) + v * V(W)), part);
            UNROLL
            for (int p = 0; p < PARTS; p++) sum[v * PARTS + p] = v64_fma(part[p], part[p], sum[v * PARTS + p]);
        }
    }
    UNROLL
    for (int v = 0; v < SUMS; v++) v64_store_f64(length + v * v64_W, sum[v]);
    for (size_t r = 0; r < V(CLIMB_ROWS); r++) {
        double top = 0, squares = 0;
        const int is_safe = length[r] > 0x1p-900 && length[r] < 0x1p900;
        for (size_t i = 0; i < b->d && !is_safe; i++) {
            const double size = csm_magnitude((double)a[i * V(CLIMB_ROWS) + r]);
            top = size > top || size != size ? size : top;
        }
        for (size_t i = 0; i < b->d && top > 0 && top < CSM_INF; i++) {
            const double u = (double)a[i * V(CLIMB_ROWS) + r] / top;
            squares = fma(u, u, squares);
        }
        length[r] = is_safe ? sqrt(length[r]) : squares > 0 ? top * sqrt(squares) : top;
    }
}

/* What the 1-norm leaves of each row whose sizes |delta_i| add up to more than eps: `kept` is the size that its largest
 * number keeps, and others keep max(kept - behind_i, 0) with behind_i = top - |delta_i|; the level top - kept by which
 * all fall would cancel after a step much longer than eps.  kept is the root of
 *   sum max(kept - behind_i, 0) = eps,
 * which is convex and piecewise linear, by Newton's method from above, which is at the root's piece when no number
 * falls to 0 any more.  Two more steps correct the rounding errors of the first ones, whose sums may be d eps; the last
 * factor covers those of kept itself. */
INLINE V(t) V(climb_size)(V(t) x) { return V(max)(x, V(sub)(V(zero)(), x)); }
static void V(climb_kept)(const csm_climb_block *b, V(t) *top, V(t) *kept, V(t) *total) {
    enum { CORRECTIONS = 2 };
    const REAL *delta = b->delta;
    const V(t) zero = V(zero)(), eps = V(set)(b->eps);
    V(t) before[V(CLIMB_VECTORS)];
    int changes = 1;
    EACH_VECTOR top[v] = total[v] = before[v] = zero;
    for (size_t i = 0; i < b->d; i++) {
        EACH_VECTOR {
            const V(t) size = V(climb_size)(V(LOAD_REAL)(delta + i * V(CLIMB_ROWS) + v * V(W)));
            top[v] = V(max)(top[v], size);
            total[v] = V(add)(total[v], size);
        }
    }
    EACH_VECTOR kept[v] = V(min)(eps, top[v]);
    for (int settled = 0; settled <= CORRECTIONS; settled += !changes) {
        V(t) sum[V(CLIMB_VECTORS)], count[V(CLIMB_VECTORS)];
        const int is_correction = settled > 0;
        EACH_VECTOR sum[v] = count[v] = zero;
        for (size_t i = 0; i < b->d; i++) {
            EACH_VECTOR {
                const V(t) size = V(climb_size)(V(LOAD_REAL)(delta + i * V(CLIMB_ROWS) + v * V(W)));
                const V(t) above = V(sub)(kept[v], V(sub)(top[v], size));
                const V(mask) counts = V(not_le)(above, zero);
                sum[v] = V(add)(sum[v], V(keep)(counts, above));
                count[v] = V(add)(count[v], V(keep)(counts, V(set)(1)));
            }
        }
        changes = 0;
        EACH_VECTOR { /* a row that is at its root stays there, however long others of the block take */
            const V(t) next = V(sub)(kept[v], V(div)(V(sub)(sum[v], eps), count[v]));
            const V(t) lower = V(min)(V(select)(V(eq)(count[v], before[v]), kept[v], next), kept[v]);
            const unsigned is_lower = V(bits)(V(not_le)(kept[v], lower)) & V(bits)(V(ordered)(lower));
            changes |= !is_correction && is_lower != 0;
            kept[v] = is_correction ? V(select)(V(ordered)(next), next, kept[v]) : lower;
            before[v] = count[v];
        }
    }
    EACH_VECTOR kept[v] = V(mul)(kept[v], V(set)(1 - (sizeof(REAL) == sizeof(double) ? 0x1p-52 : 0x1p-23)));
}

/* The largest |g_i| of each row, of equal ones the first: where it is, and the step along its sign. */
static void V(climb_largest)(const csm_climb_block *b) {
    REAL at[V(CLIMB_ROWS)], slope[V(CLIMB_ROWS)], *delta = b->delta;
    const V(t) zero = V(zero)();
    EACH_VECTOR {
        V(t) best = zero, place = zero, from = zero;
        for (size_t i = 0; i < b->d; i++) {
            const V(t) g = V(LOAD_REAL)((const REAL *)b->g + i * V(CLIMB_ROWS) + v * V(W));
            const V(t) size = V(max)(g, V(sub)(zero, g));
            const V(mask) is_larger = V(not_le)(size, best);
            best = V(select)(is_larger, size, best);
            from = V(select)(is_larger, g, from);
            place = V(select)(is_larger, V(set)((double)i), place);
        }
        V(STORE_REAL)(at + v * V(W), place);
        V(STORE_REAL)(slope + v * V(W), from);
    }
    for (size_t r = 0; r < V(CLIMB_ROWS); r++) {
        REAL *to = delta + (size_t)at[r] * V(CLIMB_ROWS) + r;
        const REAL step = (REAL)b->step;
        *to = slope[r] > 0 ? *to + step : slope[r] < 0 ? *to - step : *to + slope[r];
    }
}
static void V(climb_in_sum)(const csm_climb_block *b) {
    REAL *delta = b->delta;
    const V(t) zero = V(zero)(), eps = V(set)(b->eps);
    V(t) top[V(CLIMB_VECTORS)], kept[V(CLIMB_VECTORS)], total[V(CLIMB_VECTORS)];
    V(climb_largest)(b);
    V(climb_kept)(b, top, kept, total);
    for (size_t i = 0; i < b->d; i++) {
        EACH_VECTOR {
            REAL *to = delta + i * V(CLIMB_ROWS) + v * V(W);
            const V(t) x = V(LOAD_REAL)(to);
            /* the constant comes first, so that NaN passes */
            const V(t) size = V(max)(zero, V(sub)(kept[v], V(sub)(top[v], V(climb_size)(x))));
            const V(t) lowered = V(select)(V(not_le)(x, zero), size, V(sub)(zero, size));
            V(STORE_REAL)(to, V(select)(V(not_le)(total[v], eps), lowered, x));
        }
    }
}

/* Divides lengths by powers of two that leave them near 1, so that they, and ratios of them, are normal numbers of
 * REAL; scale: the inverses of the powers. */
static void V(climb_normalise)(double *length, REAL *scale) {
    const double limit = sizeof(REAL) == sizeof(double) ? 1022 : 126;
    for (size_t r = 0; r < V(CLIMB_ROWS); r++) {
        double mantissa = length[r], exponent = 0;
        if (length[r] > 0 && length[r] < CSM_INF) exponent = csm_take_exponent(&mantissa);
        exponent = exponent > limit ? limit : exponent < -limit ? -limit : exponent;
        scale[r] = (REAL)csm_pow2(-exponent);
        length[r] = length[r] * csm_pow2(-exponent);
    }
}
static void V(climb_in_square)(const csm_climb_block *b) {
    double length[V(CLIMB_ROWS)];
    REAL scale[V(CLIMB_ROWS)], factor[V(CLIMB_ROWS)], *delta = b->delta;
    /* so that rounded numbers are within eps */
    const double limit = b->eps * (1 - (sizeof(REAL) == sizeof(double) ? 0x1p-52 : 0x1p-23));
    const V(t) step = V(set)(b->step);
    V(climb_lengths)(b, b->g, length);
    V(climb_normalise)(length, scale);
    for (size_t r = 0; r < V(CLIMB_ROWS); r++) factor[r] = (REAL)(length[r] > 0 ? length[r] : 1);
    for (size_t i = 0; i < b->d; i++) {
        EACH_VECTOR {
            const size_t at = i * V(CLIMB_ROWS) + (size_t)(v * V(W));
            const V(t) g = V(mul)(V(LOAD_REAL)((const REAL *)b->g + at), V(LOAD_REAL)(scale + v * V(W)));
            const V(t) u = V(div)(g, V(LOAD_REAL)(factor + v * V(W)));
            V(STORE_REAL)(delta + at, V(add)(V(LOAD_REAL)(delta + at), V(mul)(step, u)));
        }
    }
    V(climb_lengths)(b, delta, length);
    for (size_t r = 0; r < V(CLIMB_ROWS); r++) length[r] = length[r] > limit ? length[r] : 0;
    V(climb_normalise)(length, scale);
    for (size_t r = 0; r < V(CLIMB_ROWS); r++) factor[r] = (REAL)(length[r] > 0 ? limit / length[r] : 1);
    for (size_t i = 0; i < b->d; i++) {
        EACH_VECTOR {
            REAL *to = delta + i * V(CLIMB_ROWS) + v * V(W);
            const V(t) x = V(mul)(V(LOAD_REAL)(to), V(LOAD_REAL)(scale + v * V(W)));
            V(STORE_REAL)(to, V(mul)(x, V(LOAD_REAL)(factor + v * V(W))));
        }
    }
}

static void V(climb_step)(const csm_climb_block *b) {
    V(climb_logits)(b, b->delta, b->fixed, b->logits);
    V(climb_coefficients)(b);
    if (b->norm == CSM_NORM_INF) {
        CLIMB_EACH_FEATURE(V(climb_signs));
        return;
    }
    CLIMB_EACH_FEATURE(V(climb_keep));
    if (b->norm == CSM_NORM_2) V(climb_in_square)(b);
    else V(climb_in_sum)(b);
    if (!b->low) return;
    for (size_t i = 0; i < b->d * V(CLIMB_ROWS); i += V(W)) {
        REAL *to = (REAL *)b->delta + i;
        const V(t) low = V(LOAD_REAL)((const REAL *)b->low + i), high = V(LOAD_REAL)((const REAL *)b->high + i);
        V(STORE_REAL)(to, V(climb_between)(V(LOAD_REAL)(to), low, high));
    }
}

/* Reads `count` rows from row `first` on; the rest of the block is zeros. */
static void V(climb_begin)(const csm_climb_block *b, const csm_climb_rows *rows, size_t first, size_t count) {
    REAL *delta = b->delta, *low = b->low, *high = b->high, *bias = b->logits, *label = b->label,
         *of_label = b->label_weights;
    const REAL eps = (REAL)b->eps;
    for (size_t i = 0; i < b->d; i++)
        for (size_t r = 0; r < V(CLIMB_ROWS); r++) {
            const size_t at = i * V(CLIMB_ROWS) + r, row = first + r;
            const REAL x = r < count ? ((const REAL *)rows->x)[row * b->d + i] : 0;
            delta[at] = x;
            if (!low) continue;
            low[at] = r < count && rows->low ? (REAL)(rows->low[row * rows->low_step + i] - (double)x) : -eps;
            high[at] = r < count && rows->high ? (REAL)(rows->high[row * rows->high_step + i] - (double)x) : eps;
            if (b->norm != CSM_NORM_INF) continue;
            low[at] = low[at] < -eps ? -eps : low[at];
            high[at] = high[at] > eps ? eps : high[at];
        }
    for (size_t j = 0; j < b->classes; j++)
        for (size_t r = 0; r < V(CLIMB_ROWS); r++)
            bias[j * V(CLIMB_ROWS) + r] = rows->bias ? ((const REAL *)rows->bias)[j] : 0;
    V(climb_logits)(b, delta, bias, b->fixed);
    for (size_t r = 0; r < V(CLIMB_ROWS); r++) {
        const size_t y = r < count ? (size_t)rows->labels[first + r] : 0;
        label[r] = (REAL)y;
        for (size_t i = 0; i < b->d; i++) of_label[i * V(CLIMB_ROWS) + r] = ((const REAL *)b->scaled)[y * b->d + i];
    }
    for (size_t i = 0; i < b->d; i++)
        for (size_t r = 0; r < V(CLIMB_ROWS); r++)
            delta[i * V(CLIMB_ROWS) + r] =
                r < count && rows->start ? ((const REAL *)rows->start)[(first + r) * b->d + i] : 0;
}

/* Writes the perturbations of `count` rows, 0 for rows with logits that are not finite. */
static void V(climb_end)(const csm_climb_block *b, const csm_climb_rows *rows, size_t first, size_t count) {
    const REAL *delta = b->delta, *fixed = b->fixed;
    for (size_t r = 0; r < count; r++) {
        REAL *to = (REAL *)rows->delta + (first + r) * b->d, zero = 0;
        for (size_t j = 0; j < b->classes; j++) zero += fixed[j * V(CLIMB_ROWS) + r] - fixed[j * V(CLIMB_ROWS) + r];
        for (size_t i = 0; i < b->d; i++) to[i] = zero == 0 ? delta[i * V(CLIMB_ROWS) + r] : 0;
    }
}
#undef CLIMB_EACH_FEATURE
#undef CLIMB_EACH_GROUP
#undef EACH_OF
#undef EACH_OF_GROUP
#undef EACH_VECTOR
