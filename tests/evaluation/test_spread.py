"""What several seeds say together."""

import numpy as np
import pytest
from scipy import stats

from afmrl_jax.evaluation.statistics import spread, verdict


def test_spread_is_students_interval_of_the_mean(rng):
    values = rng.normal(1.0, 2.0, 5)
    found = spread(values.tolist())
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(values.mean(), abs=1e-3)
    assert found["deviation"] == pytest.approx(np.std(values, ddof=1), abs=1e-3)
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=1e-3)
    assert found["values"] == pytest.approx(values, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5], "one seed says nothing"),
        ([0.9, 1.0, 1.1], "holds"),
        ([-0.9, -1.0, -1.1], "reversed"),
        ([-1.0, 1.2, 0.4], "not shown"),
    ],
)
def test_verdict_is_where_the_interval_lies(values, said):
    assert verdict(spread(values)) == said
