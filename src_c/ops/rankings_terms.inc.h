/* The terms of a ranking with one kind of positive numbers NUM: doubles, or pairs of a mantissa and an exponent.
 *
 *   R     sum of e behind a group,  S = R + that of the group
 *   order, breslow    log1p(others / e) for each observed element, others = S less its own e: a sum, not a difference
 *   efron             log of den(l) = (S less the observed of the group) + (1 - l / d) (their sum), for each l < d
 *   gradient          e_k C + own: C = sum of the weights d / S (efron: sum of 1 / den) of the groups before
 *
 * own of an observed element is -others / S, plus e (d - 1) / S where d are tied; efron's with d > 1: the sum of
 * (1 - l / d) / den, times e, less 1.  Products of 1 + others / e are kept less 1, so that small losses have all their
 * digits.  Passes: one over the elements from the last to the first, one back.  A group that is impossible (S = 0) has
 * weight 0. */
#ifndef NUM
#error "rankings_terms.inc.h needs NUM, NAME and the functions on NUM"
#endif

typedef struct NAME(tied) {
    NUM behind, sum, observed; /* R, S, sum of the observed e */
    size_t begin, end, d;
} NAME(tied);

/* A group of one element. */
static inline NUM NAME(single)(ranking_list *list, ranking_product *product, size_t i, int counts, NUM behind) {
    const NUM e = NAME(element)(list, i), sum = NAME(add)(behind, e);
    list->grad[i] = 0;
    NAME(put)(list->weight, i, NAME(zero)());
    if (!counts || !ranking_is_observed(list, i)) return sum;
    NAME(multiply)(product, behind, e);
    list->grad[i] = -1;
    if (NAME(is_zero)(sum)) return sum;
    const NUM inverse = NAME(divide)(NAME(of)(1), sum);
    NAME(put)(list->weight, i, inverse);
    if (!NAME(is_zero)(e)) list->grad[i] = -NAME(to_double)(NAME(mul)(behind, inverse));
    return sum;
}

/* Each observed element against all others that are tied or later. */
static void NAME(breslow)(ranking_list *list, ranking_product *product, const NAME(tied) * t) {
    NUM suffix = t->behind;
    for (size_t i = t->end; i-- > t->begin;) {
        NAME(put)(list->others, i, suffix);
        suffix = NAME(add)(suffix, NAME(element)(list, i));
        if (ranking_list_stops(list, i)) return;
    }
    const NUM inverse = NAME(is_zero)(t->sum) ? NAME(zero)() : NAME(divide)(NAME(of)(1), t->sum);
    NUM before = NAME(zero)();
    for (size_t i = t->begin; i < t->end; i++) {
        const NUM e = NAME(element)(list, i), others = NAME(add)(before, NAME(get)(list->others, i));
        const int is_observed = ranking_is_observed(list, i);
        const NUM own = NAME(mul)(NAME(mul)(e, inverse), NAME(of)((double)t->d - (is_observed ? 1 : 0)));
        list->grad[i] = NAME(to_double)(own);
        before = NAME(add)(before, e);
        if (ranking_list_stops(list, i)) return;
        if (!is_observed) continue;
        NAME(multiply)(product, others, e);
        list->grad[i] -= NAME(is_zero)(e) ? 1 : NAME(to_double)(NAME(mul)(others, inverse));
    }
    NAME(put)(list->weight, t->begin, NAME(mul)(inverse, NAME(of)((double)t->d)));
}

/* Half of the tied elements are gone on average: the l-th factor has lost l / d of their sum. */
static void NAME(efron)(ranking_list *list, ranking_product *product, const NAME(tied) * t) {
    const double d = (double)t->d;
    NUM fixed = t->behind, all = NAME(zero)(), parts = NAME(zero)();
    double exponent = 0, mantissa = 1;
    size_t l = 0;
    for (size_t i = t->begin; i < t->end; i++)
        if (!ranking_is_observed(list, i)) fixed = NAME(add)(fixed, NAME(element)(list, i));
    for (size_t i = t->begin; i < t->end; i++) {
        if (!ranking_is_observed(list, i)) continue;
        const double left = (d - (double)l++) / d;
        if (ranking_list_stops(list, i)) return;
        const NUM den = NAME(add)(fixed, NAME(mul)(t->observed, NAME(of)(left)));
        if (!NAME(is_zero)(den)) {
            const NUM inverse = NAME(divide)(NAME(of)(1), den);
            all = NAME(add)(all, inverse);
            parts = NAME(add)(parts, NAME(mul)(inverse, NAME(of)(left)));
        }
        NAME(accumulate)(&mantissa, &exponent, den, NAME(element)(list, i));
    }
    product->log += mantissa < CSM_INF ? ranking_log(mantissa) + exponent * 0x1.62e42fefa39efp-1 : CSM_INF;
    for (size_t i = t->begin; i < t->end; i++) {
        const NUM e = NAME(element)(list, i);
        const int is_observed = ranking_is_observed(list, i);
        if (ranking_list_stops(list, i)) return;
        list->grad[i] = NAME(to_double)(NAME(mul)(e, is_observed ? parts : all)) - (is_observed ? 1 : 0);
    }
    NAME(put)(list->weight, t->begin, all);
}

static NUM NAME(group)(ranking_list *list, ranking_product *product, size_t group, NUM behind) {
    NAME(tied) t = {behind, behind, NAME(zero)(), list->begin[group], list->begin[group + 1], 0};
    NUM sum = NAME(zero)();
    for (size_t i = t.begin; i < t.end; i++) {
        const NUM e = NAME(element)(list, i);
        sum = NAME(add)(sum, e);
        list->grad[i] = 0;
        NAME(put)(list->weight, i, NAME(zero)());
        if (ranking_list_stops(list, i)) return sum;
        if (!ranking_is_observed(list, i)) continue;
        t.observed = NAME(add)(t.observed, e);
        t.d++;
    }
    t.sum = NAME(add)(behind, sum);
    if (group >= list->factors || t.d == 0) return t.sum;
    if (list->ties == CSM_RANKING_EFRON && t.d > 1) NAME(efron)(list, product, &t);
    else if (list->ties != CSM_RANKING_EXACT || t.d == 1) NAME(breslow)(list, product, &t);
    return t.sum;
}

/* All groups but those of "exact" with several observed elements, whose terms are added later. */
void RUN(ranking_list *list) {
    ranking_product product = {{0, 0, 0, 0}, 0, 0};
    NUM sum = NAME(zero)(), before = NAME(zero)();
    if (!list->begin) {
        for (size_t i = list->n; i-- > 0 && !ranking_list_stops(list, i);)
            sum = NAME(single)(list, &product, i, i < list->factors, sum);
    } else {
        for (size_t g = list->groups; g-- > 0 && !ranking_list_stops(list, g);) {
            const size_t i = list->begin[g];
            if (list->begin[g + 1] - i == 1) sum = NAME(single)(list, &product, i, g < list->factors, sum);
            else sum = NAME(group)(list, &product, g, sum);
        }
    }
    list->loss = ranking_product_log(&product);
    for (size_t g = 0; g < list->groups && !list->is_stopped; g++) {
        const size_t end = ranking_begin(list, g + 1);
        for (size_t i = ranking_begin(list, g); i < end && !ranking_list_stops(list, i); i++)
            list->grad[i] += NAME(to_double)(NAME(mul)(NAME(element)(list, i), before));
        before = NAME(add)(before, NAME(get)(list->weight, ranking_begin(list, g)));
    }
}

#undef NUM
#undef NAME
#undef RUN
