"""`afmrl oracle`, killed and started again."""

import pytest

from experiments.reliability.kill_oracle import WIDTH, KillOracle, run

pytestmark = pytest.mark.slow


def test_no_reply_is_lost_or_asked_for_again(tmp_path):
    pytest.importorskip("openai")
    total, found = run(KillOracle(2, ("KILL",), out=tmp_path / "kills"))
    assert total["equal_files"] == 1
    assert total["in_flight_replies_asked_for_again"] <= 2 * WIDTH
    assert found[1]["kept_after"] >= found[1]["kept_before"] >= found[0]["kept_after"]
