"""A real Slurm of two nodes that a test run starts and ends: controller on `h0`, nodes `h1` and `h2`.

The hosts are those of `tests.support.namespaces`, so the nodes have names and addresses of their own, and their links
can be cut. Each slurmd lives in a process namespace with all that it starts: the kernel ends a node as a whole, and
nothing of a lost one is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.leaks import lasting_process
from tests.support.namespaces import Host, hosts
from tests.support.processes import REPOSITORY, Finished, run, wait_until
from tests.support.real_parts import missing

__all__ = ["Job", "Slurm", "slurm"]

PACKAGES = "apt-get install slurm-wlm munge iproute2 procps"
TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "unshare", "nsenter")

CONF = """\
ClusterName=test
SlurmctldHost={controller.name}({controller.address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
KillWait=10
SlurmdTimeout=8
SlurmctldTimeout=10
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
"""`cred_expire` is how long a requeued job waits at least: two minutes where nothing is said."""

NODE = "NodeName={host.name} NodeAddr={host.address} CPUs=4 RealMemory=2000 Gres=gpu:8 State=UNKNOWN"

INIT = '"$@" & while :; do wait -n || sleep 0.2; done'
"""The first process of a node: it starts slurmd and collects whatever is left to it."""

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What Slurm says of a job."""

    fields: Mapping[str, str]

    @property
    def state(self) -> str:
        return self.fields["JobState"]

    @property
    def exit_code(self) -> int:
        """Its exit code, 128+S after signal S."""
        code, number = map(int, self.fields["ExitCode"].split(":"))
        return 128 + number if number else code

    @property
    def restarts(self) -> int:
        return int(self.fields["Restarts"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """A running Slurm.

    Args:
        folder: Its configuration, its logs, its state.
        login: The host of the controller, where jobs are submitted.
        nodes: The hosts of the two nodes.
    """

    folder: Path
    login: Host
    nodes: list[Host]

    @property
    def environment(self) -> dict[str, str]:
        """What a command on the login host needs, with the checkout's package and this Python's commands."""
        scripts = str(Path(sys.executable).parent)
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }

    def run(self, *words: str | os.PathLike[str], cwd: Path | None = None, deadline_s: float = 60) -> Finished:
        """Run a command on the login host."""
        where = [f"--wdns={cwd}"] if cwd is not None else []
        return run([*self.login.enter, *where, *words], env=self.environment, deadline_s=deadline_s)

    def job(self, job: str | int) -> Job:
        """Return what Slurm says of a job."""
        told = self.run("scontrol", "show", "job", "-o", str(job)).check().stdout
        return Job(fields=dict(re.findall(r"(\S+?)=(\S*)", told)))

    def wait_for(self, job: str | int, *states: str, deadline_s: float = 90) -> Job:
        """Return what Slurm says of a job once it is in one of these states."""

        def found() -> Job | None:
            now = self.job(job)
            return now if now.state in states else None

        try:
            return wait_until(found, deadline_s, what=f"job {job} is {' or '.join(states)}", poll_s=0.2)  # type: ignore[return-value]
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.run('scontrol', 'show', 'job', str(job)).stdout}") from None

    def submit(self, *words: str | os.PathLike[str], cwd: Path) -> str:
        """Submit a script with sbatch; return the job's id."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd).check().stdout.strip()

    def end_all(self) -> None:
        """End every job, and wait until the nodes are idle."""
        self.run("scancel", "--quiet", "--user=root")
        self.run("scancel", "--quiet", "--signal=KILL", "--full", "--user=root")
        self.wait_until_idle()

    def wait_until_idle(self, deadline_s: float = 60) -> None:
        """Return once no job is left and both nodes take new ones."""

        def idle() -> bool:
            nodes = self.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D").stdout.split()
            return not self.run("squeue", "-h").stdout.strip() and nodes == ["2"]

        wait_until(idle, deadline_s, what="both nodes are idle", poll_s=0.1)


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """Start a Slurm of two nodes; all of it is gone afterwards."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            missing(f"{tool} is not on PATH: {PACKAGES}")
    daemons: list[subprocess.Popen[bytes]] = []
    with hosts(3) as (login, *nodes), tempfile.TemporaryDirectory(prefix="slurm-") as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        lines = "\n".join(NODE.format(host=host) for host in nodes)
        for number in range(8):  # GPUs to be counted by; there are no devices
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        (folder / "slurm.conf").write_text(CONF.format(controller=login, folder=folder, nodes=lines))
        try:
            _start_munge(folder, daemons)
            _start(daemons, folder, [*login.enter, "slurmctld", "-D", "-c"])
            for host in nodes:
                namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave"]
                slurmd = ["slurmd", "-D", "-N", host.name]
                _start(daemons, folder, [*host.enter, *namespace, "bash", "-c", INIT, "node", *slurmd])
            found = Slurm(folder=folder, login=login, nodes=nodes)
            try:
                found.wait_until_idle(60)
            except TimeoutError as error:
                logs = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in folder.glob("*.log"))
                raise TimeoutError(f"{error}\n{logs}") from None
            yield found
        finally:
            for process in reversed(daemons):
                process.kill()
                process.wait()


def _start_munge(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    words = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    words += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    _start(daemons, folder, words)
    wait_until((folder / "munge.socket").exists, 30, what="munged answers")


def _start(daemons: list[subprocess.Popen[bytes]], folder: Path, words: list[str]) -> None:
    with open(folder / "daemons.log", "ab") as log:
        process = subprocess.Popen(
            words,
            env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 - no threads here
        )
    daemons.append(process)
    lasting_process(process.pid)
