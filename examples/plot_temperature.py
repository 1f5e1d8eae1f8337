"""
Temperature
===========

softmax(z / T) goes from the argmax (T = 0) through the plain softmax (T = 1) to the uniform distribution (T infinite).
All of it is computed without overflow, including the limits.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

import csoftmax

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
# Entropy and largest probability as functions of the temperature.
temperatures = np.logspace(-1.5, 2, 100)
p = np.array([csoftmax.softmax(logits, temperature=t) for t in temperatures])
log_p = np.array([csoftmax.log_softmax(logits, temperature=t) for t in temperatures])
fig, ax = plt.subplots(layout="constrained")
ax.semilogx(temperatures, -(p * log_p).sum(axis=1) / np.log(4), label="entropy / log 4")
ax.semilogx(temperatures, p.max(axis=1), label="largest probability")
ax.set(xlabel="temperature T", ylim=(0, 1.05))
ax.legend()
plt.show()
