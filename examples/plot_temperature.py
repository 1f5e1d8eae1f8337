"""
Temperature
===========

softmax(z / T) goes from the argmax (T = 0) through the plain softmax (T = 1) to the uniform distribution (T infinite).
All of it is computed without overflow, including the limits.  Needs: `pip install csoftmax matplotlib`.
"""

# %%
try:
    import matplotlib.pyplot as plt
    import numpy as np

    import csoftmax
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install csoftmax matplotlib") from None

logits = np.array([1000.0, 999.0, 997.0, 990.0])  # their exponentials overflow, their softmax does not
for temperature in (0, 0.1, 1, 10, np.inf):
    print(f"T = {temperature:<4}", csoftmax.softmax(logits, temperature=temperature).round(4))

# %%
# Draws from the same logits: lower temperatures favour the largest, higher ones spread the draws.
rng = np.random.default_rng(0)
for temperature in (0.2, 1.0, 5.0):
    draws = csoftmax.sample(logits, temperature=temperature, size=1000, rng=rng)
    print(f"T = {temperature}: drawn", np.bincount(draws, minlength=4))

# %%
# The probabilities as functions of the temperature: from all for the largest logit to a quarter for each.
temperatures = np.logspace(-1.5, 3, 200)
p = np.array([csoftmax.softmax(logits, temperature=t) for t in temperatures])
plt.style.use("csoftmax.style")
fig, ax = plt.subplots()
for i, logit in enumerate(logits):
    ax.plot(temperatures, p[:, i], label=f"logit {logit:g}")
ax.axhline(1 / len(logits), color="0.6", linewidth=1, linestyle=":")
ax.annotate("1/4, uniform", (temperatures[0], 0.25), (2, 3), textcoords="offset points", color="0.4", fontsize=9)
ax.axvline(1, color="0.6", linewidth=1, linestyle=":")
ax.annotate("T = 1, plain softmax", (1, 1), (4, 0), textcoords="offset points", color="0.4", fontsize=9, va="center")
ax.set(xlabel="temperature T", ylabel="probability", xscale="log", ylim=(-0.02, 1.05))
ax.set_title("Temperature moves softmax between argmax and uniform")
ax.xaxis.set_major_formatter("{x:g}")
ax.legend(loc="center right")
plt.show()
