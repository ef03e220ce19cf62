"""The published numbers, to stand beside a run's own: arXiv 2604.20135."""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE = "arXiv 2604.20135, Findings of ACL 2026"
MODELS = "Qwen2-VL-2B as the embedder, Qwen2.5-VL-3B as the generator"


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, in percent."""

    title: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]


RETRIEVAL = PaperTable(
    title="Fine-grained retrieval",
    metrics=("R@1", "R@5", "R@10"),
    rows=(
        ("CLIP", (14.98, 23.07, 27.59)),
        ("FG-CLIP", (31.44, 49.78, 68.38)),
        ("VLM2Vec", (48.05, 64.26, 69.65)),
        ("+ AGCL", (51.06, 68.08, 73.52)),
        ("+ AGCL + distilled G", (52.42, 71.00, 76.26)),
        ("AFMRL", (54.28, 72.19, 77.27)),
    ),
)

CLASSIFICATION = PaperTable(
    title="Classification and clustering",
    metrics=("accuracy", "NMI", "ARI", "Purity"),
    rows=(
        ("VLM2Vec", (87.67, 87.04, 44.39, 73.16)),
        ("+ AGCL", (87.80, 87.11, 44.44, 73.24)),
        ("+ distilled G", (87.98, 87.63, 46.24, 74.21)),
        ("+ RL", (88.00, 87.68, 46.61, 74.52)),
        ("+ CIT", (89.13, 88.97, 47.40, 75.98)),
    ),
)
