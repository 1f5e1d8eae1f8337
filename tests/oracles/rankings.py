"""The Plackett-Luce loss of one list by its definition, in many digits; `exact` by enumeration of the sets."""

import itertools

import mpmath


def ranking_loss(x, relevance, observed=None, ties="breslow", top=None, enumerates=False, temperature=1):
    """The loss, and the two parts of the gradient by x / T of each element, its difference."""
    n = len(x)
    observed = [True] * n if observed is None else list(observed)
    members = [i for i in range(n) if relevance[i] == relevance[i]]
    order = sorted(members, key=lambda i: -float(relevance[i]))  # stable
    groups = (
        [[i] for i in order]
        if ties == "order"
        else [list(g) for _, g in itertools.groupby(order, key=lambda i: float(relevance[i]))]
    )
    with mpmath.workdps(60):
        e = [mpmath.exp(mpmath.mpf(float(v)) / mpmath.mpf(float(temperature))) for v in x]
        loss, plus, minus = mpmath.mpf(0), [mpmath.mpf(0)] * n, [mpmath.mpf(0)] * n
        place = 0
        for g, group in enumerate(groups):
            risk = [i for later in groups[g:] for i in later]
            chosen = [i for i in group if observed[i]]
            counts = top is None or place < top
            place += len(group)
            if not counts or not chosen:
                continue
            for denominator, weights in _factors(e, risk, chosen, ties, enumerates):
                loss += mpmath.log(denominator)
                for i, w in weights.items():
                    plus[i] += w
            for i in chosen:
                loss -= mpmath.log(e[i])
                minus[i] += 1
        return loss, plus, minus


def _factors(e, risk, chosen, ties, enumerates):
    """Denominators of the choices of a group, and the derivatives of their logarithms."""
    d = len(chosen)
    if ties == "exact" and d > 1:
        if enumerates:
            sets = list(itertools.combinations(risk, d))
            products = [mpmath.fprod(e[i] for i in each) for each in sets]
            total = mpmath.fsum(products)
            yield (
                total,
                {i: mpmath.fsum(p for each, p in zip(sets, products, strict=True) if i in each) / total for i in risk},
            )
            return
        from .subsets import polynomials

        total = polynomials([e[i] for i in risk], d)[d]
        without = {i: polynomials([e[j] for j in risk if j != i], d - 1)[d - 1] for i in risk}
        yield total, {i: e[i] * without[i] / total for i in risk}
        return
    for part in range(d):
        left = {i: mpmath.mpf(1) for i in risk}
        if ties == "efron":
            left |= dict.fromkeys(chosen, 1 - mpmath.mpf(part) / d)
        total = mpmath.fsum(left[i] * e[i] for i in risk)
        yield total, {i: left[i] * e[i] / total for i in risk}
