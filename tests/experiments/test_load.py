"""What the campaign of load reads from the metrics of a service."""

import math

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from afmrl_jax.serving.metrics import SECONDS, Metrics
from experiments.reliability.load import Said


@pytest.fixture
def service():
    """The metrics of a service, and a function that counts a search in them."""
    metrics = Metrics()

    def search(seconds, path="/search"):
        metrics._seconds.labels(path).observe(seconds)

    return metrics, search


def test_quantiles_are_those_of_the_searches_since_an_earlier_moment(service):
    metrics, search = service
    for _ in range(50):
        search(20.0)
    search(0.1, "/embed")
    before = Said.of(metrics.text().decode())
    took = np.random.default_rng(0).uniform(0.0, 0.3, 400)
    for x in took:
        search(float(x))
        search(9.0, "/embed")
    after = Said.of(metrics.text().decode())
    assert after.mebibytes > 10
    for share in (0.5, 0.9):
        value, true = after.quantile(before, share), float(np.quantile(took, share))
        # A histogram knows the bucket, not the place in it.
        bounds = [0.0, *SECONDS]
        bucket = int(np.searchsorted(bounds, true))
        assert bounds[bucket - 1] <= value <= bounds[bucket]
    assert math.isnan(before.quantile(before, 0.5))


def test_the_last_bucket_counts_from_its_beginning(service):
    metrics, search = service
    before = Said.of(metrics.text().decode())
    search(1000.0)
    assert Said.of(metrics.text().decode()).quantile(before, 0.5) == SECONDS[-1]
