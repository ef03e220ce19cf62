"""Chips by the names that JAX gives them, and the speed of rings along mesh axes."""

import pytest

from afmrl_jax.errors import ConfigError
from afmrl_jax.performance.accelerators import CHIPS, chip, chip_of, ring_speed


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100_80"),
        ("NVIDIA A100-SXM4-40GB", "a100_40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
    ],
)
def test_names(kind, name):
    assert chip_of(kind) == name


def test_an_unknown_chip_lists_the_known_ones():
    with pytest.raises(ConfigError, match="h200"):
        chip("h2000")


def test_rings_through_a_switch():
    links = CHIPS["h200"].links
    assert ring_speed(links, 8, 8, 1) == 450e9
    # All eight of a node send out at once.
    assert ring_speed(links, 64, 64, 1) == 400e9
    # One of each node.
    assert ring_speed(links, 64, 8, 8) == 50e9
    assert ring_speed(links, 64, 8, 1) == 450e9


def test_rings_in_a_torus():
    links = CHIPS["v5e"].links
    assert ring_speed(links, 8, 8, 1) == 100e9
    assert ring_speed(links, 256, 256, 1) == 200e9
    assert ring_speed(links, 256, 16, 1) == 100e9
    assert ring_speed(links, 64, 8, 1) == 50e9
    with pytest.raises(ConfigError, match="7 chips"):
        ring_speed(links, 7, 7, 1)
