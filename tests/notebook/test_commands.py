"""Commands from a notebook: what they print comes back, what they refuse is an error."""

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.notebook.commands import afmrl


def test_what_a_command_prints_comes_back(badges):
    assert "120 listings of 30 products" in afmrl("catalogue-check", badges)


def test_what_a_command_refuses_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"afmrl report(.|\n)*there is no run directory"):
        afmrl("report", "--run", tmp_path / "nowhere")
