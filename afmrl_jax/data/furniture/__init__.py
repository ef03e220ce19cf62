"""The embedded catalogue: rendered furniture with real names, sizes and 3-D models.

Built by `experiments/build_furniture.py`; creators and licences are in `ATTRIBUTION.md`.
"""

from __future__ import annotations

from importlib.resources import as_file, files

from afmrl_jax.data.records import Catalogue


def load_furniture() -> Catalogue:
    """The furniture catalogue, about 11,000 listings."""
    from afmrl_jax.data.catalogue import read_catalogue_file

    with as_file(files(__package__) / "listings.parquet") as path:
        return read_catalogue_file(path, name="furniture", verify_pictures=False)
