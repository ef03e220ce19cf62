"""A few hundred broken and hostile inputs with a fixed seed; every kind of failure is an error."""

import json
import subprocess
import sys

import pytest

from experiments.reliability.fuzz.case import FAILING

pytestmark = pytest.mark.slow
CASES, SEED = 240, 0
REPEAT = "python -m experiments.reliability.fuzz --cases {cases} --seed {seed} --only {case}"


@pytest.fixture(scope="module")
def outcomes(whole_run, shared, tmp_path_factory):
    """What came of the cases."""
    out = tmp_path_factory.mktemp("fuzz") / "outcomes.json"
    command = [sys.executable, "-m", "experiments.reliability.fuzz", "--cases", str(CASES)]
    command += ["--seed", str(SEED), "--out", str(out), "--run", str(whole_run)]
    command += ["--good", str(shared / "fuzz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert out.is_file(), done.stderr
    return json.loads(out.read_text())


def test_every_case_ran(outcomes):
    assert outcomes["figures"]["cases"] >= CASES - 20
    assert len([x for x in outcomes["details"] if "verdict" not in x]) >= 17, "targets"


@pytest.mark.parametrize("verdict", FAILING)
def test_no_case_ends(outcomes, verdict):
    found = [x for x in outcomes["details"] if x.get("verdict") == verdict]
    lines = [f"{x['target']}:{x['number']} ({x['what']}): {x['line']}" for x in found]
    repeat = REPEAT.format(cases=CASES, seed=SEED, case="CASE")
    assert not found, f"{repeat}\n" + "\n".join(lines)
