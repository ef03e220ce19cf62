"""A few hundred broken and hostile requests with a fixed seed."""

import shutil

from experiments.reliability.hostile_requests import TOKEN, draw, problem_of, send
from tests.serving.conftest import serving

CASES, SEED = 300, 0


def test_every_request_is_answered_with_a_reason(run, embedded, tmp_path, monkeypatch):
    folder = shutil.copytree(embedded, tmp_path / "index")
    with serving(run, folder, monkeypatch, token=TOKEN) as client:
        # What a route raises and nothing handles is raised here, too.
        statuses, problems = set(), []
        for number in range(CASES):
            case = draw(SEED, number)
            status, text = send(client, case)
            statuses.add(status)
            if (problem := problem_of(case, status, text)) is not None:
                problems.append(f"{number}: {case.method} {case.path}: {problem}")
        assert not problems, "\n".join(problems)
        assert statuses <= {0, 200, 400, 401, 403, 404, 405, 409, 413, 415, 421, 422}
        assert statuses >= {200, 401, 422}
    assert {x.name for x in tmp_path.iterdir()} == {"index"}
