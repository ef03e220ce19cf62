"""The small embedder and generator that the demo starts from, as Hugging Face folders.

They were pretrained on the drawn marketplace by `experiments.studies.pretrain_demo`.
"""

from __future__ import annotations

from pathlib import Path

from afmrl_jax.config.model import DEMO_WEIGHTS, RANDOM_WEIGHTS
from afmrl_jax.errors import ConfigError
from afmrl_jax.types import Role

HERE = Path(__file__).parent


def weights_folder(named: str | None, role: Role) -> Path | None:
    """The folder that the setting `weights` of a model names; None for random weights.

    Args:
        named: `demo`, `random` or None, or a folder.
        role: of the model.

    Raises:
        ConfigError: this installation lacks the demo's weights.
    """
    if named is None or named == RANDOM_WEIGHTS:
        return None
    if named != DEMO_WEIGHTS:
        return Path(named)
    folder = HERE / role
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"this installation lacks the demo's weights ({folder}); install the wheel again, or "
            f"give --{role}.weights random"
        )
    return folder
