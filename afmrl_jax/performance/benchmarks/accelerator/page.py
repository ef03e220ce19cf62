"""The figures of an accelerator as a table, each beside its share of what the card can do."""

from __future__ import annotations

from collections.abc import Sequence

from afmrl_jax.types import JsonObject

ROWS: dict[str, tuple[str, str, str | None]] = {
    "peak_tflops": ("Peak, bfloat16 product", "TFLOP/s", None),
    "bandwidth_tb_per_second": ("Memory, reading", "TB/s", None),
    "attention_error": ("Attention and its gradients, error", "", None),
    "agcl_error": ("AGCL's gradient, error", "", None),
    "g_tokens_per_second": ("Generator, decoding", "tokens/s", "g_share_of_roofline"),
    "r_images_per_second": ("Embedder, training step", "images/s", "r_share_of_peak"),
    "rar_rollouts_per_second": ("RAR with its reward", "rollouts/s", "rar_share_of_peak"),
    "reward_ms": ("Reward, ranks in the gallery", "ms", "reward_share_of_roofline"),
    "agcl_16k_ms": ("AGCL, smaller batch", "ms", "agcl_16k_share_of_roofline"),
    "bm25_ms": ("BM25 of a batch", "ms", None),
    "exact_queries_per_second": ("Exact search", "queries/s", "exact_share_of_roofline"),
    "agcl_64k_ms": ("AGCL, larger batch", "ms", "agcl_64k_share_of_roofline"),
    "input_images_per_second": ("Pictures to patches", "images/s", None),
}
"""By figure: what it is, its unit, and the figure of its share of the roofline."""


def page(device: str, sizes: str, details: Sequence[JsonObject]) -> str:
    """Markdown: a row a figure, and what was skipped or failed.

    Args:
        device: as JAX names it.
        sizes: real or tiny.
        details: of the parts, in order.
    """
    figures = {n: x for part in details for n, x in part.get("figures", {}).items()}
    lines = [f"# {device}, {sizes} sizes", "", "| What | Figure | Share of the roofline |"]
    lines.append("| --- | ---: | ---: |")
    for name, (title, unit, share) in ROWS.items():
        if name in figures:
            part = f"{100 * figures[share]:.3g} %" if share in figures else ""
            lines.append(f"| {title} | {f'{figures[name]:.4g} {unit}'.strip()} | {part} |")
    missing = [f"* {x['part']}: {x['status']}, {x['reason']}" for x in details if "reason" in x]
    return "\n".join([*lines, *(["", *missing] if missing else []), ""])
