"""Search one's own texts and pictures with a trained run: python examples/search.py runs/demo."""

import sys
from pathlib import Path

from afmrl_jax import Embedder, Index


def main(run: str) -> None:
    """Embed a few texts, keep them in an index, and search it."""
    embedder = Embedder.load(run)
    texts = ["oak chair", "walnut table", "grey sofa with three seats", "steel floor lamp"]
    # A picture would be {"image": "photo.jpg", "text": "oak chair"}.
    index = Index.build(embedder.encode(texts), texts, embedder=embedder.identity)
    hits = index.search(embedder.encode(["oak chair", "a lamp of steel"]), k=2)
    for ids, scores in zip(hits.ids, hits.scores, strict=True):
        print("; ".join(f"{text} ({score:.2f})" for text, score in zip(ids, scores, strict=True)))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python examples/search.py RUN   (the --out of a finished run)")
    main(sys.argv[1])
