"""The curves of reinforcement."""

from __future__ import annotations

from afmrl_jax.reporting.curves import Curve, Lines, Plot


def reinforcement_plots(rar: Lines) -> list[Plot]:
    """All curves of a stage; the first is the one that decides.

    Args:
        rar: lines of its metrics.
    """

    def both(key: str, *, errors: float = 0.0) -> list[Curve]:
        return [
            Curve("training batch", rar, key),
            Curve("held-out queries", rar, f"held_out/{key}", errors, points=True),
        ]

    share = (-0.02, 1.02)
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
            both("reward", errors=1.0),
            "Held-out queries are never trained on and are always sampled with the same keys. "
            "Band: one standard error.",
        ),
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
            both("well_formed_reward"),
            "Without malformed lists, of which fewer also raise the reward.",
        ),
        Plot(
            "RAR: queries that some list of the group finds",
            "share of queries",
            both("pass_at_group"),
            "Recall@k of the best list of each group.",
            whole_range=share,
        ),
        Plot("RAR: live groups", "groups", [Curve("live", rar, "live_groups")]),
        Plot("RAR: KL to the distilled generator", "nats per token", [Curve("KL", rar, "kl")]),
        Plot(
            "RAR: dead groups",
            "share of groups",
            [Curve("dead groups", rar, "dead_group_share")],
            "Groups whose samples all earn the same reward, from which nothing is learned.",
            whole_range=share,
        ),
        Plot("RAR: malformed lists", "share of samples", both("malformed_share")),
        Plot("RAR: attributes per list", "key-value pairs", both("attribute_count")),
        Plot("RAR: length of a list", "tokens", both("attribute_tokens")),
        Plot("RAR: entropy", "nats per token", [Curve("entropy", rar, "entropy")]),
        Plot(
            "RAR: clipped tokens",
            "share of tokens",
            [Curve("clipped", rar, "clip_share")],
            "Tokens whose gradient is clipped; none with one update per rollout.",
            whole_range=share,
        ),
        Plot("RAR: gradient norm", "norm before clipping", [Curve("norm", rar, "gradient_norm")]),
        Plot(
            "RAR: seconds per step",
            "seconds",
            [Curve(x, rar, f"seconds_{x}") for x in ("sampling", "reward", "update")],
        ),
        Plot("RAR: host memory", "GB", [Curve("resident", rar, "host_memory_gb")]),
    ]
