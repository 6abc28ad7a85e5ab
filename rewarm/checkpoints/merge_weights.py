"""The weights with which checkpoints of a run are merged, and the decay that each merge stands for.

Checkpoints θ_0, ..., θ_k of a run at a constant learning rate differ by its updates:
θ_j = θ_0 + u_1 + ... + u_j, where u_i is all that training changed between checkpoints i - 1 and i.
A merge with weights c_0, ..., c_k that sum to 1 is then (arXiv:2507.17634)

```
 Σ_j c_j θ_j = θ_0 + Σ_i w_i u_i        w_i = c_i + c_(i+1) + ... + c_k,    1 ≥ w_1 ≥ ... ≥ w_k ≥ 0
```
what training would have reached with update i multiplied by w_i: a decayed learning rate, as far as
the updates would have been the same. The other way round, the weights of a given decay w are

```
 c_0 = 1 - w_1        c_j = w_j - w_(j+1)        c_k = w_k
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

MergeMethod = Literal["mean", "ema", "1-sqrt"]


def checkpoint_weights(
    method: MergeMethod, steps: Sequence[int], decay: float = 0.8
) -> list[float]:
    """Returns the weights of checkpoints, which sum to 1.

    * `mean`: c_j = 1 / (k + 1). The decay is linear: w_i = 1 - i / (k + 1).
    * `ema`: an exponential moving average that starts at the oldest, m_j = d m_(j-1) + (1 - d) θ_j:
      c_0 = d^k, c_j = (1 - d) d^(k-j). The decay is w_i = 1 - d^(k-i+1).
    * `1-sqrt`: the decay is 1 - √t, with t from 0 at the oldest checkpoint to 1 at the newest. As
      an update u_i is the sum over many steps, w_i is the mean of that curve over them, from
      a = t_(i-1) to b = t_i: w_i = 1 - 2/3 (b^(3/2) - a^(3/2)) / (b - a).

    >>> checkpoint_weights("mean", [100, 200, 300, 400])
    [0.25, 0.25, 0.25, 0.25]
    >>> [round(c, 4) for c in checkpoint_weights("1-sqrt", [100, 200, 300])]
    [0.4714, 0.3905, 0.1381]

    Args:
        method: the way of merging.
        steps: the steps of the checkpoints, 2 or more in ascending order.
        decay: d, the share that an older average keeps at each checkpoint; for `ema`.
    """
    k = len(steps) - 1
    if method == "mean":
        return [1 / (k + 1)] * (k + 1)
    if method == "ema":
        return [decay**k, *((1 - decay) * decay ** (k - j) for j in range(1, k + 1))]
    times = [(step - steps[0]) / (steps[k] - steps[0]) for step in steps]
    factors = [1 - 2 / 3 * (b**1.5 - a**1.5) / (b - a) for a, b in pairwise(times)]
    return [before - after for before, after in pairwise([1.0, *factors, 0.0])]


def update_factors(weights: Sequence[float]) -> list[float]:
    """Returns the decay that a merge stands for: w_1, ..., w_k, by which updates are multiplied."""
    return [math.fsum(weights[i:]) for i in range(1, len(weights))]
