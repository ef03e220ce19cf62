"""Results say which commit, libraries and machine they come from."""

import json
import subprocess

from afmrl_jax.performance.record import write_record
from afmrl_jax.runtime.provenance import commit, provenance


def test_a_record_has_commit_versions_and_machine(tmp_path):
    write_record(tmp_path / "a.json", "a", {"b": 1.0}, [])
    found = json.loads((tmp_path / "a.json").read_text())
    assert {x: found[x] for x in ("commit", "versions", "machine")} == provenance()
    assert found["versions"].keys() >= {"python", "jax", "numpy"}
    assert found["machine"]["cores"] >= 1


def test_the_commit_is_that_of_the_checkout(tmp_path):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True).stdout.decode().strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    git("tag", "v1")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"


def test_a_broken_checkout_has_no_commit(tmp_path):
    (tmp_path / ".git").write_text("gitdir: nowhere")
    assert commit(tmp_path) is None
