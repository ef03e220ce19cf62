"""SLURM on loopback, and where the launchers lie."""

import contextlib
import getpass
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from experiments.reliability.local_job import free_ports

ROOT = Path(__file__).parents[3]
LAUNCHERS = ROOT / "experiments" / "cluster"
LIMIT = 2400
"""Seconds after which a job counts as hung."""
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")

CONFIGURATION = """
ClusterName=loopback
FirstJobId={first}
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(what, seconds: float, every: float = 0.25, complaint=lambda: ""):
    """What `what` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            pytest.fail(f"{what.__name__} did not happen in {seconds:.0f} s\n{complaint()}")
        time.sleep(every)
    return found


@dataclass
class Slurm:
    """A cluster of one node with two CPUs: munged, slurmctld and slurmd of the user who tests."""

    folder: Path
    daemons: list[subprocess.Popen] = field(default_factory=list)

    def start(self) -> None:
        """Write the configuration, start the daemons, wait until the node is idle."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        ports = free_ports(2)
        # JAX takes its port from the job's number.
        told = {"folder": self.folder, "ports": ports, "first": random.randrange(1, 60000)}
        text = CONFIGURATION.format(user=getpass.getuser(), **told)
        (self.folder / "slurm.conf").write_text(text)
        munge = {"key-file": key, "origin": "127.0.0.1"}
        munge |= {f"{x}-file": self.folder / f"munge.{x}" for x in ("pid", "log", "seed")}
        self.daemon(
            "munged",
            "--foreground",
            f"--socket={self.folder}/munge.socket",
            *(f"--{name}={value}" for name, value in munge.items()),
        )
        wait_for((self.folder / "munge.socket").exists, 30, complaint=self.said)
        self.daemon("slurmctld", "-D")
        self.daemon("slurmd", "-D", "-N", "localhost")

        def idle():
            return self.ask("sinfo", "--noheader", "--format=%t", check=False).strip() == "idle"

        wait_for(idle, 60, complaint=self.said)

    def daemon(self, name: str, *arguments: str) -> None:
        """Start one, with what it says in a file."""
        with (self.folder / f"{name}.out").open("wb") as out:
            self.daemons.append(
                subprocess.Popen(
                    [shutil.which(name), *arguments], env=self.env, stdout=out, stderr=out
                )
            )

    def stop(self) -> None:
        """End all jobs and daemons."""
        if len(self.daemons) == 3:
            self.ask("scancel", "--user", getpass.getuser(), check=False)
            self.ask("scancel", "--signal=KILL", "--user", getpass.getuser(), check=False)
            end = time.monotonic() + 10
            while self.ask("squeue", "--noheader", check=False).strip() and time.monotonic() < end:
                time.sleep(0.25)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for stray in self.strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)

    def strays(self) -> list[int]:
        """Processes of this cluster; without its daemons those that look after steps stay on."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            # Others' processes, and those that have just ended, cannot be read.
            with contextlib.suppress(OSError):
                if mark in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
        return found

    @property
    def env(self) -> dict[str, str]:
        """The environment of a user of this cluster, on CPUs, outside any other job."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "JAX"))}
        return own | {"SLURM_CONF": str(self.folder / "slurm.conf"), "JAX_PLATFORMS": "cpu"}

    def ask(self, *command: str, check: bool = True, **env: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.env | env, capture_output=True, text=True, timeout=60
        )
        if check and done.returncode:
            pytest.fail(f"{command} ended with {done.returncode}: {done.stderr}\n{self.said()}")
        return done.stdout

    def submit(self, log: Path, *script: str, tasks: int = 2, **env: str) -> str:
        """The number of a job that runs a script with the launcher."""
        launcher = str(LAUNCHERS / "slurm.sh")
        options = ["--parsable", f"--ntasks={tasks}", f"--output={log}", "--time=60"]
        return self.ask("sbatch", *options, launcher, *script, **env).strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, number: str, log: Path, restarts: int = 0) -> dict[str, str]:
        """The job, once it has ended, or waits in the queue again after more than `restarts`."""

        def end():
            job = self.job(number)
            waits = job["JobState"] == "PENDING" and int(job["Restarts"]) <= restarts
            runs = job["JobState"] in ("RUNNING", "COMPLETING", "CONFIGURING")
            return None if waits or runs or not self.quiet() else job

        return wait_for(end, LIMIT, complaint=lambda: self.said(log))

    def until(self, file: Path, text: str, *logs: Path) -> None:
        """Wait until a file, as the log of a job, has this text."""

        def told():
            return file.exists() and text in file.read_text()

        wait_for(told, LIMIT, every=0.05, complaint=lambda: self.said(file, *logs))

    def quiet(self) -> bool:
        """Whether nothing runs on the node."""
        return self.ask("sinfo", "--noheader", "--format=%t").strip() == "idle"

    def start_now(self, number: str) -> None:
        """Spare a requeued job the two minutes that SLURM lets it wait."""
        self.ask("scontrol", "update", f"JobId={number}", "StartTime=now")

    def said(self, *logs: Path) -> str:
        """The ends of the logs, and of what the daemons said."""
        files = (*logs, *sorted(self.folder.glob("*.out")))
        ends = {x.name: x.read_text(errors="replace")[-2000:] for x in files if x.exists()}
        return "\n".join(f"== {name}\n{text}" for name, text in ends.items())


@pytest.fixture(scope="module")
def slurm():
    """A SLURM of its own; its folder is short, because it holds a socket, and open, for munge."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; on Debian: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
