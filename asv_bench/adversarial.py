"""csoftmax.adversarial beside ART (PGD), foolbox (smallest perturbations) and a loop in NumPy (certificates).

    pip install scikit-learn adversarial-robustness-toolbox foolbox torch
    python asv_bench/adversarial.py [--rounds 9] [--threads 2] [--part certify,pgd,attacks]

The model is scikit-learn's LogisticRegression of all digits / 16; the rows are the first 500, in the box [0, 1].
certify: all three norms, beside a NumPy loop over rows and rivals that sorts each.  pgd: 40 steps, eps 0.05, inf-norm,
beside ART's ProjectedGradientDescent at its default batch of 32 and at one of 500.  attacks: norms of foolbox's
perturbations of 100 rows over the exact radius: none may be below 1.  Rounds alternate; times are medians.
"""

import argparse
import time

import numpy as np

import csoftmax
from csoftmax.adversarial import certify, perturb

EPS, STEPS = 0.05, 40


def make_problem():
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    X, y = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=2000).fit(X / 16, y)
    return model, X[:500] / 16, y[:500]


def find_distance(a, need, room, norm):
    """The least norm of d with |a| . d >= need and 0 <= d <= room, by sorting."""
    size = np.abs(a)
    if need <= 0:
        return 0.0
    if size @ room < need:
        return np.inf
    if norm == 1:
        order = np.argsort(-size, kind="stable")
        gain = np.cumsum(size[order] * room[order])
        k = np.searchsorted(gain, need)
        return room[order][:k].sum() + (need - (gain[k - 1] if k else 0)) / size[order][k]
    step = size if norm == 2 else np.ones(len(a))
    limit = np.where(size > 0, room / np.where(step > 0, step, 1), np.inf)
    order = np.argsort(limit)
    full = np.r_[0, np.cumsum(size[order] * room[order])][:-1]
    rest = np.cumsum((size * step)[order][::-1])[::-1]
    reach = np.where(
        np.isfinite(limit[order]), full + rest * np.where(np.isfinite(limit[order]), limit[order], 0), np.inf
    )
    k = np.searchsorted(reach, need)
    level = (need - full[k]) / rest[k]
    return level if norm == np.inf else np.linalg.norm(np.minimum(level * size, room))


def certify_by_loop(x, w, bias, y, norm):
    logits = x @ w.T + bias
    radius = np.full(len(x), np.inf)
    for i, row in enumerate(x):
        for j in range(len(w)):
            if j != y[i]:
                a = w[j] - w[y[i]]
                room = np.where(a > 0, 1 - row, row)
                radius[i] = min(radius[i], find_distance(a, logits[i, y[i]] - logits[i, j], room, norm))
    return radius


def time_rounds(functions, rounds):
    seconds = []
    for _ in range(rounds):
        seconds.append([])
        for function in functions:
            begin = time.perf_counter()
            function()
            seconds[-1].append(time.perf_counter() - begin)
    return np.median(seconds, axis=0) * 1e3


def show_certify(model, x, y, rounds):
    w, bias, norms = model.coef_, model.intercept_, (1, 2, np.inf)

    def ours():
        return [certify(x, w, bias=bias, target=y, norm=p, bounds=(0, 1)).radius for p in norms]

    def loop():
        return [certify_by_loop(x, w, bias, y, p) for p in norms]

    for a, b in zip(ours(), loop()):
        np.testing.assert_allclose(a, b, rtol=1e-11)
    fast, slow = time_rounds([ours, loop], rounds)
    print(f"certify, 3 norms, with box: csoftmax {fast:.2f} ms, loop {slow:.0f} ms, ratio {slow / fast:.0f}")


def show_pgd(model, x, y, rounds):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import SklearnClassifier

    w, bias = model.coef_, model.intercept_
    classifier = SklearnClassifier(model, clip_values=(0, 1))
    options = {"eps": EPS, "eps_step": 2.5 * EPS / STEPS, "max_iter": STEPS, "verbose": False}
    attacks = [ProjectedGradientDescent(classifier, batch_size=n, **options) for n in (32, 500)]
    functions = [lambda: perturb(x, w, y, bias=bias, eps=EPS, steps=STEPS, bounds=(0, 1))]
    functions += [lambda attack=attack: attack.generate(x, y) for attack in attacks]
    left = [np.mean(model.predict(function()) == y) for function in functions]
    exact = np.mean(certify(x, w, bias=bias, target=y, bounds=(0, 1)).radius > EPS)
    ours, *theirs = time_rounds(functions, rounds)
    print(
        f"PGD-{STEPS}: csoftmax {ours:.2f} ms; ART "
        + ", ".join(f"{ms:.0f} ms in batches of {n} (ratio {ms / ours:.0f})" for ms, n in zip(theirs, (32, 500)))
    )
    print(f"accuracy left: csoftmax {left[0]:.3f}, ART {left[1]:.3f}; exact worst case {exact:.3f}")


def show_attacks(model, x, y):
    import foolbox
    import torch

    w, bias = model.coef_, model.intercept_
    linear = torch.nn.Linear(x.shape[1], len(w)).double()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(w))
        linear.bias.copy_(torch.from_numpy(bias))
    victim = foolbox.PyTorchModel(linear.eval(), bounds=(0, 1), device="cpu")
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    print("| attack | norm | found | smallest norm / radius | median |\n|---|---|---|---|---|")
    attacks = {
        "DeepFool": (2, foolbox.attacks.L2DeepFoolAttack()),
        "DeepFool, inf": (np.inf, foolbox.attacks.LinfDeepFoolAttack()),
        "Carlini-Wagner": (2, foolbox.attacks.L2CarliniWagnerAttack(steps=50, binary_search_steps=4)),
        "DDN": (2, foolbox.attacks.DDNAttack()),
        "FMN, 1": (1, foolbox.attacks.L1FMNAttack(steps=60)),
        "FMN, 2": (2, foolbox.attacks.L2FMNAttack(steps=60)),
        "FMN, inf": (np.inf, foolbox.attacks.LInfFMNAttack(steps=60)),
    }
    smallest = np.inf
    for name, (norm, attack) in attacks.items():
        try:
            moved, _, _ = attack(victim, images, labels, epsilons=None)
        except Exception as error:  # some attacks cannot start from every row
            print(f"| {name} | {norm:g} | {type(error).__name__}: {str(error)[:60]} | | |")
            continue
        moved = moved.numpy()
        radius = certify(x, w, bias=bias, target=y, norm=norm, bounds=(0, 1)).radius
        found = (model.predict(moved) != y) & (radius > 0)
        ratio = np.linalg.norm(moved - x, ord=norm, axis=1)[found] / radius[found]
        smallest = min(smallest, ratio.min(initial=np.inf))
        print(f"| {name} | {norm:g} | {found.sum()} | {ratio.min():.6f} | {np.median(ratio):.4f} |")
    if smallest < 1 - 1e-5:
        raise SystemExit(f"an attack found a perturbation of {smallest} times the radius")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=csoftmax.get_num_threads(), help="of kernels and of the BLAS")
    parser.add_argument("--part", default="certify,pgd,attacks")
    arguments = parser.parse_args()
    from threadpoolctl import threadpool_limits

    model, x, y = make_problem()
    parts = arguments.part.split(",")
    with threadpool_limits(arguments.threads), csoftmax.threads(arguments.threads):
        if "certify" in parts:
            show_certify(model, x, y, arguments.rounds)
        if "pgd" in parts:
            show_pgd(model, x, y, arguments.rounds)
        if "attacks" in parts:
            show_attacks(model, x[:100], y[:100])


if __name__ == "__main__":
    main()
