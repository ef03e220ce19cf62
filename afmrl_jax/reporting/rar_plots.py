"""The curves of reinforcement."""

from __future__ import annotations

from afmrl_jax.reporting.curves import Curve, Lines, Plot

SHARE = (-0.02, 1.02)
"""Limits of the y axis."""


def _both(rar: Lines, key: str, *, errors: float = 0.0) -> list[Curve]:
    return [
        Curve("training batch", rar, key),
        Curve("held-out queries", rar, f"held_out/{key}", errors, points=True),
    ]


def _worth(rar: Lines) -> list[Plot]:
    """What lists are worth beside none, and how much there is to learn."""
    return [
        Plot(
            "RAR: what lists are worth",
            "reward",
            [
                Curve("list less no list", rar, "list_gain"),
                Curve("held-out, list less no list", rar, "held_out/list_gain", points=True),
                Curve("best of the group less its mean", rar, "group_room"),
            ],
            "Well-formed lists. The first says whether lists help these queries at all, the last "
            "how much reinforcement could gain by choosing among what is sampled.",
            zero_line=True,
        ),
        Plot(
            "RAR: well-formed lists alone",
            "reward",
            _both(rar, "well_formed_reward"),
            "Without malformed lists, of which fewer also raise the reward.",
        ),
        Plot(
            "RAR: queries that some list of the group finds",
            "share of queries",
            _both(rar, "pass_at_group"),
            "Recall@k of the best list of each group.",
            whole_range=SHARE,
        ),
        Plot("RAR: live groups", "groups", [Curve("live", rar, "live_groups")]),
    ]


def reinforcement_plots(rar: Lines) -> list[Plot]:
    """All curves of a stage; the first is the one that decides.

    Args:
        rar: lines of its metrics.
    """
    return [
        Plot(
            "RAR: held-out gain over the start",
            "reward",
            [Curve("gain", rar, "held_out/gain", 2.0, points=True)],
            "Paired with the same queries before the first step. Band: two standard errors.",
            zero_line=True,
        ),
        Plot(
            "RAR: reward",
            "reward",
            _both(rar, "reward", errors=1.0),
            "Held-out queries are never trained on and are always sampled with the same keys. "
            "Band: one standard error.",
        ),
        *_worth(rar),
        Plot("RAR: KL to the distilled generator", "nats per token", [Curve("KL", rar, "kl")]),
        Plot(
            "RAR: dead groups",
            "share of groups",
            [Curve("dead groups", rar, "dead_group_share")],
            "Groups whose samples all earn the same reward, from which nothing is learned.",
            whole_range=SHARE,
        ),
        Plot("RAR: malformed lists", "share of samples", _both(rar, "malformed_share")),
        Plot("RAR: attributes per list", "key-value pairs", _both(rar, "attribute_count")),
        Plot("RAR: length of a list", "tokens", _both(rar, "attribute_tokens")),
        Plot("RAR: entropy", "nats per token", [Curve("entropy", rar, "entropy")]),
        Plot(
            "RAR: clipped tokens",
            "share of tokens",
            [Curve("clipped", rar, "clip_share")],
            "Tokens whose gradient is clipped; none with one update per rollout.",
            whole_range=SHARE,
        ),
        Plot("RAR: gradient norm", "norm before clipping", [Curve("norm", rar, "gradient_norm")]),
        Plot(
            "RAR: seconds per step",
            "seconds",
            [Curve(x, rar, f"seconds_{x}") for x in ("sampling", "reward", "update")],
        ),
        Plot("RAR: host memory", "GB", [Curve("resident", rar, "host_memory_gb")]),
    ]
