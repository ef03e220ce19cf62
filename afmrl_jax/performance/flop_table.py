"""The operations that the two large steps need, as the tables of `docs/flops.md`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from afmrl_jax.config import LoraConfig, QwenVLConfig
from afmrl_jax.models.qwen_vl.presets import preset
from afmrl_jax.performance.flops import Passes, deepstack_flops

VISUAL, TEXT, GROUP, NEW = 256, 64, 8, 80
"""Visual and text tokens of a row, lists of a prompt, tokens of a list."""


def _adapted(name: str) -> QwenVLConfig:
    return dataclasses.replace(preset(name), lora=LoraConfig())


def _table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    rows = [head, ("--",) + ("--:",) * (len(head) - 1), *lines]
    return "\n".join("| " + " | ".join(x) + " |" for x in rows)


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.3f}"


def embedder_table(name: str = "qwen2vl_2b") -> str:
    """A training step of the embedder on adapters, 10^12 operations for each listing."""
    config = _adapted(name)
    patches = [VISUAL * config.vision.merge_size**2]
    found, deep = Passes.over(config, patches, [VISUAL + TEXT]), deepstack_flops(config, patches)
    parts = (
        ("vision tower, frozen", found.vision - deep, 1, 0.0),
        *((("DeepStack's mergers, frozen", deep, 1, 0.0),) if deep else ()),
        ("decoder, frozen kernels", found.decoder, 2, found.decoder),
        ("adapters", found.adapters, 3, found.adapters),
    )
    lines = [(x, _tera(one), str(n), _tera(n * one), _tera(more)) for x, one, n, more in parts]
    again = found.recomputed("lora", "full")
    lines.append(("all", _tera(found.forward), "", _tera(found.step("lora")), _tera(again)))
    return _table(("part", "one pass", "passes", "useful", "recomputed by `remat full`"), lines)


def rar_table(name: str = "qwen2_5vl_3b") -> str:
    """A step of reinforcement on adapters, 10^12 operations for each prompt, without the reward."""
    config = _adapted(name)
    prompt = Passes.over(config, [VISUAL * config.vision.merge_size**2], [VISUAL + TEXT])
    lists = Passes.behind(config, [VISUAL + TEXT], GROUP, NEW)
    bare = dataclasses.replace(prompt + lists, adapters=0.0)
    seen = Passes(vision=prompt.vision)
    decoding = bare.forward - prompt.vision
    adapters = Passes.over(config, [], [VISUAL + TEXT, *[NEW] * GROUP]).adapters
    update = dataclasses.replace(bare, vision=0.0, adapters=adapters)
    parts = (
        ("pictures, once for all that follows", seen.forward),
        ("sampling, adapters merged", decoding),
        ("scoring with the reference", decoding),
        ("update on adapters", update.step("lora")),
    )
    lines = [(x, _tera(y)) for x, y in parts]
    lines.append(("all", _tera(sum(y for _, y in parts))))
    return _table(("part", "useful"), lines)
