"""A run directory as a finished demo leaves it, with made-up figures and drawn pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from afmrl_jax.config import RunConfig, to_dict

ROWS = ("infonce", "agcl", "agcl+distilled", "afmrl", "afmrl+cit")
FINE = (55.1, 56.0, 62.4, 63.3, 64.0)
DIFFERENCES = ((0, 1, 0.9, -0.4, 2.2), (1, 2, 6.4, 4.3, 8.6), (2, 3, 0.9, 0.1, 1.7))
HOSTILE = "<script>alert('title')</script> \"chair\" & more"


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def drawn_picture(number: int, side: int = 128) -> str:
    """A piece of furniture, roughly, as base64 JPEG."""
    rng = np.random.default_rng(number)
    colour = tuple(int(x) for x in rng.integers(40, 210, 3))
    picture = Image.new("RGB", (side, side), (244, 242, 238))
    pen = ImageDraw.Draw(picture)
    unit = side / 16
    pen.rectangle([4 * unit, 2 * unit, 11 * unit, 8 * unit], fill=colour)
    pen.rectangle([3 * unit, 8 * unit, 12 * unit, 10 * unit], fill=colour, outline="black")
    for leg in (3.2, 10.8):
        pen.rectangle([leg * unit, 10 * unit, (leg + 1) * unit, 15 * unit], fill="black")
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()


def evaluation() -> dict[str, Any]:
    """`evaluation.json` with all tasks, baselines, comparisons and ScaNN."""
    rows = []
    for name, fine in zip(ROWS, FINE, strict=True):
        tasks = {
            "fine": {"R@1": fine, "R@5": fine + 21.3, "R@10": fine + 27.9, "MRR": fine + 8.6},
            "coarse": {"mAP@1": fine + 18, "mAP@5": fine + 13.2, "mAP@10": fine + 10.4},
            "text_to_image": {"R@1": fine - 42, "R@5": fine - 25.5, "R@10": fine - 13},
            "image_to_multimodal": {"R@1": fine - 12, "R@5": fine + 8, "R@10": fine + 17},
            "image_to_image": {"R@1": fine - 20, "R@5": fine - 4, "R@10": fine + 5},
            "classification": {"accuracy": fine + 20.6},
            "clustering": {"NMI": fine + 4.1, "ARI": fine - 21.7, "Purity": fine + 8.8},
            "clustering_type": {"NMI": fine + 9.2, "ARI": fine - 11.7, "Purity": fine + 2.8},
        }
        intervals = {
            task: {m: [round(v - 2.4, 2), round(v + 2.3, 2)] for m, v in values.items()}
            for task, values in tasks.items()
        }
        tasks["chance"] = {"clustering_type": {"NMI": 31.5, "ARI": 0.0, "Purity": 12.2}}
        tasks["fine"] |= {"map_m5@10": fine + 3, "prec_m5@10": fine - 9}
        tasks["coarse"] |= {"map_m5@1": fine + 18, "map_m5@10": fine + 12, "prec_m5@10": fine + 1}
        more = {
            "macro": {"fine": {"R@1": fine - 1.7}, "coarse": {"mAP@10": fine + 4.4}},
            "truncation": {
                "dims": [128, 64, 32],
                "R@1": [fine, fine - 6.5, fine - 21],
                "R@10": [fine + 27.9, fine + 22, fine + 3],
            },
            "per_category": {
                HOSTILE: {"queries": 412, "fine.R@1": fine + 2, "coarse.mAP@10": None},
                "other (4 categories)": {"queries": 31, "fine.R@1": fine - 3},
            },
        }
        rows.append(
            {"name": name, **tasks, "intervals": intervals, **more}
            | {"n_queries": 2204, "n_gallery": 2211, "seed": 0}
        )
    comparisons = []
    for before, after, difference, low, high in (*DIFFERENCES, (3, 4, 0.7, -0.2, 1.6)):
        found = {"difference": difference, "low": low, "high": high}
        metrics = {f"fine.R@{k}": found for k in (1, 5, 10)} | {"fine.MRR": found}
        metrics |= {"coarse.mAP@10": found, "text_to_image.R@1": found}
        comparisons.append({"from": ROWS[before], "to": ROWS[after], "metrics": metrics})
    return {
        "catalogue": "furniture",
        "listings": 14_600,
        "rows": rows,
        "chance": {"fine": {"R@1": 0.11, "MRR": 0.4}, "text_to_image": {"R@1": 0.13}},
        "ideal": {"text_to_image": {"R@1": 46.1}},
        "primary": primary(),
        "lists": {
            "keys": {
                "before": {"type": 99.1, "color": 98.4, "style": 80.2, "size": 41.0},
                "after": {"type": 99.6, "color": 97.0, "size": 44.5, "dims": 22.2, "style": 2.1},
            },
            "changes": {"system": "afmrl+cit", "queries": 2204, "gained": 312, "lost": 201},
        },
        "comparisons": comparisons,
        "baselines": {
            "raw pixels": {"R@1": 14.2, "R@5": 29.1, "R@10": 36.4},
            "colour histogram": {"R@1": 21.9, "R@5": 41.0, "R@10": 50.3},
            "BM25 over titles": {"R@1": 28.7, "R@5": 51.6, "R@10": 59.8},
        },
        "scann": {
            "k": 10,
            "recall": 97.84,
            "recalls": {"fine": 97.84, "coarse": 97.84},
            "n_queries": 2204,
            "metrics": {"fine": {"R@1": {"exact": 64.0, "scann": 63.28}}},
        },
        "latency": {
            "system": "afmrl+cit",
            "machine": {"processor": "A processor", "cores": 2, "device": "cpu: cpu"},
            "batch": 128,
            "gallery": 2211,
            "encode_one": {"p50_ms": 12.345, "p95_ms": 20.5, "repeats": 30},
            "search_exact_one": {"p50_ms": 0.51, "p95_ms": 0.77, "repeats": 30},
        },
        "peak_memory_gb": 3.41,
    }


def primary() -> list[dict[str, Any]]:
    """Primary tests: a gain, harm in one metric only, nothing shown, and text to image."""

    def test(step: str, pair: tuple[str, str], metric: str, *found: float) -> dict[str, Any]:
        difference, low, high, p = found
        about = {"step": step, "about": "against the one before", "from": pair[0], "to": pair[1]}
        sides = {"before": 55.0, "after": 55.0 + difference}
        task = "text_to_image" if pair[0] == "chance" else "fine"
        numbers = {"difference": difference, "low": low, "high": high, "p": p / 8, "p_holm": p}
        return about | {"task": task, "metric": metric} | sides | numbers

    return [
        test("attributes", ("agcl", "agcl+distilled"), "R@1", 6.4, 4.3, 8.6, 0.0008),
        test("attributes", ("agcl", "agcl+distilled"), "MRR", 5.1, 3.3, 6.6, 0.0008),
        test("AGCL", ("infonce", "agcl"), "R@1", 0.9, -0.4, 2.2, 0.61),
        test("AGCL", ("infonce", "agcl"), "MRR", -0.8, -1.3, -0.3, 0.012),
        test("RAR", ("agcl+distilled", "afmrl"), "R@1", 0.9, 0.1, 1.7, 0.11),
        test("text to image", ("chance", "afmrl+cit"), "R@1", 20.1, 18.0, 22.0, 0.0008),
    ]


def changed_card() -> dict[str, Any]:
    """A query that finds its product only with the lists, by the word for its neckline."""

    def read(number: int, title: str, words: str) -> dict[str, Any]:
        found = {"listing_id": f"listing-{number}", "title": title, "image": drawn_picture(number)}
        return found | {"attributes": words}

    return {
        "query": read(61, "Shirt, cotton, for summer", "x: y"),
        "results": [],
        "changed": {
            "gained": True,
            "right": read(62, "Summer shirt", "type: shirt; neckline: v-neck"),
            "wrong": read(63, "Another shirt", "type: shirt; neckline: round"),
            "attributes": "type: shirt; neckline: v-neck",
            "effects": {"neckline": 0.14, "type": -0.01},
        },
    }


def gallery() -> list[dict[str, Any]]:
    """`gallery.json`: an ordinary query, a hostile one, and one whose list is malformed."""

    def listing(number: int, title: str) -> dict[str, Any]:
        return {
            "listing_id": f"listing-{number}",
            "product_id": f"product-{number // 3}",
            "title": title,
            "image": drawn_picture(number),
        }

    def results(first_right: int) -> list[dict[str, Any]]:
        return [
            listing(20 + n, f"chair no. {n}, oak, 45 x 52 x 90 cm, the favourite of our customers")
            | {"score": 0.93 - 0.04 * n, "correct": n == first_right}
            for n in range(5)
        ]

    return [
        {
            "query": listing(1, "Dining chair, modern look, 18 in wide"),
            "attributes_before": "type: seat; color: grey; style: beautiful; size: small",
            "attributes_after": "color: grey; type: chair; dims: 45x52x90; size: small",
            "true_attributes": "type: chair; color: grey; size: small; dims: 45x52x90",
            "results": results(0),
        },
        {
            "query": listing(2, HOSTILE),
            "attributes_before": HOSTILE,
            "attributes_after": f"color: {HOSTILE}",
            "true_attributes": None,
            "results": [x | {"title": HOSTILE} for x in results(3)],
        },
        {
            "query": listing(3, "Stehlampe Nordlicht weiß") | {"image": "no base64 at all"},
            "attributes_before": "color white; ; type",
            "attributes_after": "type: floor lamp; color: white",
            "true_attributes": "type: floor lamp; color: white",
            "results": results(9),
        },
        changed_card(),
    ]


def _lines(steps: int, every: int, **curves: Any) -> list[dict[str, Any]]:
    return [
        {"step": step} | {name: curve(step) for name, curve in curves.items()}
        for step in range(every, steps + 1, every)
    ]


def _rar_lines() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    lines = _lines(
        60,
        1,
        reward=lambda n: 0.47 + 0.0012 * n + 0.04 * rng.normal(),
        kl=lambda n: 0.0004 * n + 0.001 * rng.random(),
        dead_group_share=lambda n: 0.42 + 0.05 * rng.normal(),
        malformed_share=lambda n: max(0.0, 0.11 - 0.001 * n + 0.01 * rng.normal()),
        attribute_count=lambda n: 4.4 - 0.014 * n + 0.1 * rng.normal(),
        attribute_tokens=lambda n: 21.0 - 0.06 * n + 0.5 * rng.normal(),
        entropy=lambda n: 0.9 - 0.002 * n,
    )
    lines = [{"step": 0}, *lines]
    for line in lines[::20]:
        step = line["step"]
        held_out = {
            "reward": 0.471 + 0.0008 * step,
            "reward_error": 0.011,
            "gain": 0.0008 * step,
            "gain_error": 0.007 if step else 0.0,
            "malformed_share": 0.11 - 0.0009 * step,
            "attribute_count": 4.4 - 0.015 * step,
            "attribute_tokens": 21.0 - 0.06 * step,
        }
        line |= {f"held_out/{name}": value for name, value in held_out.items()}
    return lines


def write_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def write_stages(run: Path) -> None:
    """`DONE.json` of every stage, chained by the hashes of their outputs."""
    chain = {
        "tokenizer": ("tokenizer.json", (), 3.0),
        "backbone": ("model/model.safetensors", ("tokenizer",), 82.0),
        "infonce": ("model/model.safetensors", ("tokenizer", "backbone"), 171.2),
        "distill": ("model/model.safetensors", ("tokenizer",), 206.9),
        "annotate-distilled": ("attributes.jsonl", ("distill",), 41.0),
        "agcl": ("model/model.safetensors", ("annotate-distilled",), 175.5),
        "agcl-distilled": ("model/model.safetensors", ("annotate-distilled",), 198.3),
        "rar": ("model/model.safetensors", ("distill", "agcl-distilled"), 243.6),
        "annotate-reinforced": ("attributes.jsonl", ("rar",), 20.4),
        "cit-1": ("model/model.safetensors", ("agcl-distilled", "annotate-reinforced"), 71.2),
    }

    def digest(stage: str) -> str:
        return hashlib.sha256(stage.encode()).hexdigest()

    for name, (output, inputs, seconds) in chain.items():
        read = {f"from {x}": digest(x) for x in inputs} | {"seed": 0}
        done = {"inputs": read, "fingerprint": digest(name)[:16]}
        done |= {"outputs": {output: digest(name)}, "seconds": seconds}
        write_json(run / name / "DONE.json", done)


def write_run(run: Path) -> Path:
    """A finished run directory."""
    write_json(run / "config.json", to_dict(RunConfig.demo()))
    write_json(run / "evaluation.json", evaluation())
    write_json(run / "gallery.json", gallery())
    write_stages(run)
    start = {"k": 3, "recall_at": {"1": 0.31, "3": 0.49, "5": 0.58}}
    write_json(run / "rar" / "held_out_start" / "start.json", start)
    heights = {
        "backbone": 4.0,
        "infonce": 3.9,
        "agcl": 4.1,
        "agcl-distilled": 3.8,
        "cit-1": 1.5,
        "distill": 5.2,
    }
    for place, (stage, height) in enumerate(heights.items()):
        speed = 60.0 + 8 * place
        write_metrics(
            run / stage,
            _lines(
                200,
                10,
                loss=lambda n, a=height, s=speed: 0.4 + a * math.exp(-n / s),
                accuracy=lambda n, s=speed: 0.9 - 0.8 * math.exp(-n / s),
                masked_by_margin=lambda n, s=speed: 0.02 * math.exp(-n / s),
            ),
        )
    write_metrics(run / "rar", _rar_lines())
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run directory."""
    return write_run(tmp_path / "demo")
