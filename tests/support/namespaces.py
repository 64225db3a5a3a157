"""Hosts made of network namespaces: own addresses, names and /etc/hosts, on a switch whose links can be cut.

The namespaces have no name. A sleeping process holds each, and the kernel ends it with the test process, so that
nothing is left whatever happens. The switch is a bridge in a namespace of its own: the machine's own network is not
touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.launching import Live, command, environment
from tests.support.processes import Finished, descendants, kill_all, process_table, run
from tests.support.real_parts import missing

__all__ = ["Host", "hosts"]

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host.

    Args:
        name: Its host name, `h0`, `h1` and so on.
        address: Its address.
        pid: The process that holds its namespaces.
        switch_pid: The process that holds the switch's.
    """

    name: str
    address: str
    pid: int
    switch_pid: int

    @property
    def enter(self) -> list[str]:
        """The words before a command that runs on this host."""
        return ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount"]

    def run(self, *words: str, deadline_s: float = 30) -> Finished:
        """Run a command on this host."""
        return run([*self.enter, *words], deadline_s=deadline_s)

    def cut(self) -> None:
        """Cut its link at the switch: nothing arrives, nobody is told."""
        self._link("down")

    def mend(self) -> None:
        """Put the link back."""
        self._link("up")

    def _link(self, state: str) -> None:
        run(["nsenter", f"--target={self.switch_pid}", "--net", "ip", "link", "set", self.name, state]).check()

    def processes(self) -> list[int]:
        """Return the processes that are on this host, but for the one that holds it."""
        mine = os.readlink(f"/proc/{self.pid}/ns/net")
        found = []
        for pid, process in process_table().items():
            with contextlib.suppress(OSError):
                if pid != self.pid and not process.is_zombie and os.readlink(f"/proc/{pid}/ns/net") == mine:
                    found.append(pid)
        return found

    def listening(self) -> list[str]:
        """Return the addresses and ports that something on this host listens on."""
        return [line.split()[3] for line in self.run("ss", "-Hltn").check().stdout.splitlines()]

    @contextlib.contextmanager
    def launching(
        self,
        *args: str | os.PathLike[str],
        cwd: Path,
        run_dir: Path,
        env: Mapping[str, str | None] | None = None,
        package: Path | None = None,
    ) -> Iterator[Live]:
        """Start `distrain launch` with `args` on this host; whatever is left of it afterwards is killed.

        Args:
            *args: Options, script and its arguments.
            cwd: Where it runs.
            run_dir: The run directory that this node will have.
            env: Changes to this process's environment.
            package: The folder of another copy of distrain to launch with.
        """
        whole = {key: value for key, value in {**os.environ, **environment(env)}.items() if value is not None}
        if package is not None:
            whole["PYTHONPATH"] = str(package)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                [*self.enter, f"--wdns={cwd}", *command(*args)],
                env=whole,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                yield Live(process=process, run_dir=run_dir, out=out, err=err)
            finally:
                tree = descendants(process.pid)
                if process.poll() is None:
                    process.kill()
                    process.wait()
                kill_all(tree)


@contextlib.contextmanager
def hosts(count: int, *, own_name_is_loopback: bool = False, on_loopback: str = "") -> Iterator[list[Host]]:
    """Make hosts `h0`, `h1` and so on that reach each other, 10.77.0.10 and up; they are gone afterwards.

    Args:
        count: How many.
        own_name_is_loopback: Whether each host's own name leads it to 127.0.1.1, as Debian writes it.
        on_loopback: Another name of each host's loopback interface.
    """
    if os.geteuid() != 0:
        missing("network namespaces need root")
    for tool in ("ip", "ss", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            missing(f"{tool} is not on PATH: apt-get install iproute2 util-linux")
    names = [f"h{i}" for i in range(count)]
    addresses = [f"10.77.0.{10 + i}" for i in range(count)]
    held: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            switch = _hold(held, "ip link set lo up; ip link add br0 type bridge; ip link set br0 up")
            found = []
            for name, address in zip(names, addresses, strict=True):
                table = Path(folder) / name
                known = dict(zip(names, addresses, strict=True)) | ({name: "127.0.1.1"} if own_name_is_loopback else {})
                lines = [f"127.0.0.1 localhost {on_loopback}", *(f"{ip} {each}" for each, ip in known.items())]
                table.write_text("".join(f"{line}\n" for line in lines))
                pid = _hold(held, f"mount --bind {table} /etc/hosts; hostname {name}; ip link set lo up")
                _in(switch, f"ip link add {name} type veth peer name eth0 netns {pid}")
                _in(switch, f"ip link set {name} master br0 up")
                _in(pid, f"ip addr add {address}/24 dev eth0 && ip link set eth0 up")
                found.append(Host(name=name, address=address, pid=pid, switch_pid=switch))
            yield found
        finally:
            for process in held:
                process.kill()
                process.wait()


def _hold(held: list[subprocess.Popen[bytes]], setup: str) -> int:
    """Start a process in namespaces of its own, which are set up when this returns; return its pid."""
    process = subprocess.Popen(
        [
            *("unshare", "--net", "--uts", "--mount", "--propagation", "slave"),
            *("sh", "-ec", f"{setup}; echo; exec sleep infinity"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 - no threads here
    )
    held.append(process)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"\n", f"a namespace could not be set up: {setup}"
    return process.pid


def _in(pid: int, line: str) -> None:
    run(["nsenter", f"--target={pid}", "--net", "sh", "-c", line]).check()
