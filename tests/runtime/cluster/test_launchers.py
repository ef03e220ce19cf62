"""The launchers are sound scripts, and what they start gets what it needs."""

import os
import shutil
import signal
import stat
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import LAUNCHERS, ROOT, wait_for

COUNTING = str(Path(__file__).with_name("counting.py"))
SCRIPTS = sorted(LAUNCHERS.glob("*.sh"))
SHOW = """import os, sys
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "CUDA_VISIBLE_DEVICES")
print(*(os.environ.get(x, "-") for x in names), *sys.argv[1:])
"""


def launch(name: str, *arguments: str, **env: str) -> subprocess.Popen:
    """Start a launcher with an environment of its own."""
    own = {k: os.environ[k] for k in ("PATH", "HOME", "PYTHONPATH") if k in os.environ}
    own |= {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"} | env
    return subprocess.Popen(
        [str(LAUNCHERS / name), *arguments],
        cwd=ROOT,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(name: str, *arguments: str, **env: str) -> tuple[int, str, str]:
    """Status, output and complaints of a launcher."""
    process = launch(name, *arguments, **env)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda x: x.name)
def test_shellcheck_finds_nothing(path):
    beside = Path(sys.executable).with_name("shellcheck")
    tool = str(beside) if beside.exists() else shutil.which("shellcheck")
    if tool is None:
        pytest.skip("no shellcheck; it is in the extra `lint`")
    done = subprocess.run([tool, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert path.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda x: x.name)
def test_without_a_script_the_usage_is_said(path):
    status, _, err = run(path.name)
    assert status == 2
    assert "usage:" in err


def show(tmp_path: Path) -> str:
    path = tmp_path / "show.py"
    path.write_text(SHOW)
    return str(path)


def test_one_process_of_a_host_is_alone(tmp_path):
    status, out, _ = run("hosts.sh", show(tmp_path), "--out", "a b")
    assert (status, out) == (0, "- - - - --out a b\n")


def test_a_host_runs_the_package_as_well_as_a_script():
    status, out, err = run("hosts.sh", "-m", "afmrl_jax", "--version")
    assert status == 0, err
    assert out.startswith("afmrl-jax ")


def test_each_gpu_of_a_host_has_its_process(tmp_path):
    env = {"HOSTS": "2", "HOST": "1", "PER_HOST": "2", "COORDINATOR": "host0:99"}
    status, out, _ = run("hosts.sh", show(tmp_path), CUDA_VISIBLE_DEVICES="3,5,6", **env)
    assert (status, sorted(out.splitlines())) == (0, ["host0:99 4 2 3", "host0:99 4 3 5"])
    status, out, _ = run("hosts.sh", show(tmp_path), **env | {"PER_HOST": "1"})
    assert (status, out) == (0, "host0:99 2 1 -\n")


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"HOSTS": "2"}, "needs COORDINATOR"),
        ({"HOSTS": "2", "HOST": "2", "COORDINATOR": "a:1"}, "HOST must be 0 to 1, found '2'"),
        ({"PER_HOST": "no"}, "count from 1"),
        ({"PER_HOST": "2", "CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES has 1"),
    ],
)
def test_wrong_settings_of_hosts_are_told(tmp_path, env, complaint):
    status, _, err = run("hosts.sh", show(tmp_path), **env)
    assert status == 2
    assert complaint in err


def test_status_of_a_host_is_that_of_the_process_that_failed(tmp_path):
    path = tmp_path / "end.py"
    path.write_text("import os, sys; sys.exit((75, 0, 3)[int(os.environ['JAX_PROCESS_ID'])])")
    assert run("hosts.sh", str(path), PER_HOST="3")[0] == 3
    assert run("hosts.sh", str(path), PER_HOST="2")[0] == 75


@pytest.mark.slow
def test_processes_of_a_host_end_together_and_go_on(tmp_path):
    steps, done = tmp_path / "steps.txt", 0

    def under_way():
        written = steps.read_text().count("\n") if steps.exists() else 0
        return process.poll() is not None or written > done + 2

    for number in (signal.SIGTERM, signal.SIGINT):
        process = launch("hosts.sh", COUNTING, str(tmp_path), "400", "0.2", PER_HOST="2")
        wait_for(under_way, 240)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 75, err
        assert f"process 1 of 2 starts at step {done}" in out
        done = len(steps.read_text().splitlines())
        assert all(f"process {i} saves step {done - 1}" in out for i in (0, 1))
    status, out, err = run("hosts.sh", COUNTING, str(tmp_path), str(done + 2), PER_HOST="2")
    assert status == 0, err
    numbers = [int(x.split()[0]) for x in steps.read_text().splitlines()]
    assert numbers == list(range(done + 2))


GCLOUD = """#!/bin/sh
# Runs the command of `ssh` here, as worker 0 would, and says READY to `describe`.
case "$4" in
describe) echo READY; exit ;;
esac
for argument; do
    case "$argument" in
    --command=*) echo "$argument" >>"$CALLS"; exec sh -c "${argument#--command=}" ;;
    esac
done
exit 9
"""


@pytest.mark.slow
@pytest.mark.parametrize(("restarts", "status", "calls"), [("0", 75, 1), ("3", 0, 2)])
def test_tpu_pod_runs_the_script_with_its_arguments(tmp_path, restarts, status, calls):
    """With a stand-in for gcloud: the first run ends with 75, the second one is done."""
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    python = tmp_path / "afmrl" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    script = tmp_path / "afmrl" / "a.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "print(os.environ['AFMRL_CLUSTER'], sys.argv[1:])\n"
        "again = pathlib.Path('again'); first = not again.exists(); again.touch()\n"
        "sys.exit(75 if first else 0)\n"
    )
    env = {"TPU": "t", "ZONE": "z", "FOLDER": str(tmp_path / "afmrl"), "RESTARTS": restarts}
    env |= {"PATH": f"{gcloud.parent}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    found, out, _ = run("tpu_vm.sh", "a.py", "--out", "it's two  words", **env)
    assert found == status
    assert out == "on ['--out', \"it's two  words\"]\n" * calls


def jobset() -> dict:
    """The JobSet as envsubst fills it in, with the values that its head names."""
    text = (LAUNCHERS / "gke_jobset.yaml").read_text()
    values = {"NAME": "demo", "IMAGE": "image", "CLAIM": "runs", "HOSTS": "4", "CHIPS": "4"}
    values |= {"TPU": "tpu-v6e-slice", "TOPOLOGY": "4x4", "COMMAND": "a.py --x 'b: c'"}
    head = "".join(x for x in text.splitlines() if x.startswith("#"))
    assert all(f"{name}=" in head or f" {name} " in head for name in values)
    return yaml.safe_load(string.Template(text).substitute(values))


def test_jobset_restarts_what_was_asked_to_end_without_counting_it():
    filled = jobset()
    assert (filled["apiVersion"], filled["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [rule] = filled["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    [job] = [x["template"]["spec"] for x in filled["spec"]["replicatedJobs"]]
    # Kubernetes takes a podFailurePolicy only with restartPolicy Never, and JobSet sees its reason
    # only where the job fails by it.
    codes, conditions = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    assert {codes["action"], conditions["action"]} == {"FailJob"}
    assert codes["onExitCodes"]["values"] == [75]
    assert conditions["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_jobset_gives_each_host_of_the_slice_a_process():
    [job] = [x["template"]["spec"] for x in jobset()["spec"]["replicatedJobs"]]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["args"] == ["exec python a.py --x 'b: c'\n"]
    [codes, _] = job["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["containerName"] == container["name"]
    assert {x["name"] for x in container["volumeMounts"]} == {x["name"] for x in pod["volumes"]}
