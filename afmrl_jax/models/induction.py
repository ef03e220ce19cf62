"""A copying circuit to start from: what a pretrained language model can do from the first step.

A pretrained generator copies the words of its prompt. One with random weights needs longer to
learn that than a demo lasts, and sometimes does not. Two attention heads suffice for it (an
"induction head", Olsson et al. 2022, arXiv 2209.11895): one writes to every token which token
stood before it, the next looks for the place after an earlier occurrence of the present token
and repeats what stands there. `add_induction_head` writes these two heads into otherwise random
weights. Nothing holds them there: training is free to change them.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.typing import ArrayLike

from afmrl_jax.config import TextConfig
from afmrl_jax.config.validation import require

SPAN = 30
"""Tokens over which contents are matched: slower rotations than 1 / SPAN leave them as they are."""
SHARPNESS = 5.0
"""Logit by which the token before outdoes its neighbours."""
WRITTEN = 0.1
"""Length at which the token before is written beside the token itself, per unit of input."""
MATCH = 5.0
"""Scale of the queries that look for the present token."""
COPY = 2.0
"""Scale at which the found token is written to the output."""


def add_induction_head(
    params: Mapping[str, jax.Array], config: TextConfig, key: jax.Array
) -> dict[str, jax.Array]:
    """Parameters in which the first two layers copy.

    Head 0 of layer 0 writes the token before; the first head of every key-value group of layer 1
    matches and copies, each in directions of its own, for one is too narrow to tell all words.

    Args:
        params: of a model whose decoder is `config`, by path.
        config: at least two layers, and a `rope_theta` that leaves some frequencies slow.
        key: of the random directions that the circuit uses.

    Returns:
        A new dictionary; arrays that the circuit does not touch are shared.

    Raises:
        ConfigError: the decoder is too small for the circuit.
    """
    half, head, hidden = config.head_dim // 2, config.head_dim, config.hidden_dim
    frequency = 1.0 / config.rope_theta ** (np.arange(half) / half)
    fast = np.flatnonzero(frequency * SPAN >= 1.0)
    slow = np.flatnonzero(frequency * SPAN < 1.0)
    places = np.concatenate([slow, slow + half])
    require(config.num_layers > 1, "an induction head needs two layers")
    require(
        0 < 2 * len(places) <= hidden,
        f"an induction head needs 1 to {hidden // 2} slow rotary dimensions, not {len(places)}",
    )
    directions = jax.random.orthogonal(key, hidden)
    read, before = directions[:, : len(places)], directions[:, len(places) : 2 * len(places)]
    copied = jax.random.orthogonal(jax.random.fold_in(key, 1), hidden)
    weights = _HeadWeights(params, head)

    # Layer 0: constant queries and keys whose rotations meet at a distance of one.
    gap = float(np.sum(1.0 - np.cos(frequency[fast])))
    strength = np.sqrt(SHARPNESS * np.sqrt(head) / gap)
    turned = np.concatenate([np.cos(frequency[fast]), np.sin(frequency[fast])])
    weights.put(0, "q_proj/kernel", 0, fast, 0.0)
    weights.put(0, "k_proj/kernel", 0, fast, 0.0)
    weights.put(0, "q_proj/bias", 0, fast, strength)
    weights.put(0, "k_proj/bias", 0, np.concatenate([fast, fast + half]), strength * turned)
    weights.put(0, "v_proj/kernel", 0, np.arange(len(places)), read)
    weights.put(0, "o_proj/kernel", 0, np.arange(len(places)), WRITTEN * before)
    # Layer 1: the present token looks for its like in what layer 0 wrote, and copies.
    everything = np.arange(head)
    for group in range(config.num_kv_heads):
        query = group * (config.num_heads // config.num_kv_heads)
        own = copied[:, group * head : (group + 1) * head]
        weights.put(1, "q_proj/kernel", query, places, MATCH * read)
        weights.put(1, "k_proj/kernel", group, places, before)
        weights.put(1, "v_proj/kernel", group, everything, own)
        weights.put(1, "o_proj/kernel", query, everything, COPY * own)
    return weights.params


class _HeadWeights:
    """Parameters of which single attention heads are rewritten."""

    def __init__(self, params: Mapping[str, jax.Array], head_dim: int):
        self.params = dict(params)
        self._head_dim = head_dim

    def put(self, layer: int, name: str, head: int, places: np.ndarray, value: ArrayLike) -> None:
        """Clear a head (columns of q, k and v, rows of o), then write `value` at its `places`."""
        path, begin = f"model/layers/self_attn/{name}", head * self._head_dim
        flipped = name == "o_proj/kernel"
        weights = self.params[path][layer]
        weights = weights.T if flipped else weights
        weights = weights.at[..., begin : begin + self._head_dim].set(0.0)
        weights = weights.at[..., begin + places].set(value)
        weights = weights.T if flipped else weights
        self.params[path] = self.params[path].at[layer].set(weights)
