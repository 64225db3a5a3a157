"""The warm server as pytest's process sees it: started once, asked for ranks, never outliving this process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

__all__ = ["ServerError", "Started", "WarmServer"]

ANSWERS_S = 120.0
"""How long one answer may take; the first waits for the import of torch, each file's first for that of its module."""

LIBRARIES_HAVE_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Read when the libraries are loaded; a pool of threads started then would forbid forking."""

LEFT_OUT = ("terminal", "_cov")
"""Plugins that the server does without: they talk to the user, of the tests and of what was covered."""

_BOOT = """\
import sys
sys.path[:] = {path!r}
from distrain.supervision.guard import guarded
parent_pid = guarded({pid})
for name in [each for each in sys.modules if each.split(".")[0] == "distrain"]: del sys.modules[name]
from _pytest.config import _prepareconfig
config = _prepareconfig({args!r}, None)
from distrain.testing import server
server.main(config, fd={fd}, parent_pid=parent_pid)
"""
# The guard leaves the process while it is small. pytest rewrites the assertions of a plugin's modules and complains of
# those that it finds imported, so they are imported anew.


class ServerError(Exception):
    """The server cannot do what it was asked for, in words for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A rank that was forked.

    Args:
        pid: Its process.
        connection: To it.
    """

    pid: int
    connection: Connection


class WarmServer:
    """The process that has imported torch and forks ranks; see `server` for its own side.

    Args:
        process: It.
        control: The socket to it.
        log: What it and its ranks write where pytest captures nothing.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, log: IO[bytes] | None) -> None:
        self._process = process
        self._sock = control
        self._control = Connection(os.dup(control.fileno()))
        self._log = log
        self.is_usable = True

    @classmethod
    def start(cls, config: pytest.Config) -> WarmServer:
        """Start a server for a pytest run; it answers once it is warm.

        Args:
            config: Of the run, whose arguments and folder the server gets.
        """
        ours, theirs = socket.socketpair()
        args = list(config.invocation_params.args)
        if config.pluginmanager.has_plugin("_cov"):
            args.insert(0, "--cov-append")  # else its start would erase what others have measured
        boot = _BOOT.format(path=sys.path, args=args, fd=theirs.fileno(), pid=os.getpid())
        log = None if config.getoption("capture") in {"no", "tee-sys"} else tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", boot],
                cwd=config.invocation_params.dir,
                env={**os.environ, **LIBRARIES_HAVE_ONE_THREAD},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which ends the ranks
            )
        server = cls(process, ours, log)
        with contextlib.suppress(BrokenPipeError):  # it has ended already; the first question tells how
            server._control.send(_worker_input(config))
        return server

    def collect(self, path: str, nodeid: str) -> None:
        """Have the server import a test's module and find the test in it.

        Raises:
            ServerError: It cannot, or ranks cannot be forked after that.
        """
        self._ask("collect", path, nodeid)

    def start_ranks(self, nodeid: str, num_ranks: int, job: dict[str, Any]) -> list[Started]:
        """Fork the ranks of a test that was collected.

        Args:
            nodeid: The test.
            num_ranks: How many.
            job: What they need to know; see `rank.Job`.
        """
        pids = self._ask("start", nodeid, num_ranks, job)
        _, fds, _, _ = socket.recv_fds(self._sock, 1, num_ranks)
        return [Started(pid=pid, connection=Connection(fd)) for pid, fd in zip(pids, fds, strict=True)]

    def how_it_ended(self, pid: int) -> int | None:
        """Return the exit code of a rank, -S for signal S; None when it runs on."""
        code: int | None = self._ask("how_it_ended", pid)
        return code

    def end_ranks(self) -> None:
        """Kill what is left of a test: its ranks and whatever they started."""
        with contextlib.suppress(ServerError):  # a server that is gone has taken them along
            self._ask("end_ranks")

    def close(self) -> None:
        """End the server and all that it started."""
        self.is_usable = False
        self._control.close()
        self._sock.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        if self._log is not None:
            self._log.close()

    def _ask(self, op: str, *args: Any) -> Any:
        try:
            self._control.send((op, *args))
            if not self._control.poll(ANSWERS_S):
                raise ServerError(f"The server of distributed tests did not answer {op!r} within {ANSWERS_S:g} s.")
            answer, value = self._control.recv()
        except (OSError, EOFError):
            raise self._lost() from None
        except ServerError:
            self.close()
            raise
        except BaseException:  # Ctrl-C or a deadline between question and answer: they would not fit any more
            self.close()
            raise
        if answer == "spoilt":
            self.close()  # the next test gets a new one
        if answer != "ok":
            raise ServerError(value)
        return value

    def _lost(self) -> ServerError:
        """Close, and return what the server's end looks like."""
        self.is_usable = False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        code, said = self._process.poll(), ""
        if self._log is not None:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-4000:].strip()
        self.close()
        how = "still runs, but has closed its connection" if code is None else f"ended with exit code {code}"
        return ServerError(f"The server of distributed tests {how}." + (f" It had said:\n{said}" if said else ""))


def _worker_input(config: pytest.Config) -> dict[str, Any]:
    """Return what plugins would tell a worker of pytest-xdist: some cannot be one without, pytest-randomly for one."""
    told: dict[str, Any] = {"workerid": "master", "workercount": 1, "testrunuid": ""}
    if (seed := config.getoption("randomly_seed", None)) is not None:
        told["randomly_seed"] = seed  # pytest-randomly tells it only where pytest-xdist is installed
    if hasattr(config, "workerinput"):
        told.update(config.workerinput)
    elif hasattr(config.hook, "pytest_configure_node"):
        manager = config.pluginmanager
        left_out = [manager.get_plugin(name) for name in LEFT_OUT]
        hook = manager.subset_hook_caller("pytest_configure_node", [each for each in left_out if each is not None])
        gateway = SimpleNamespace(id="master", spec=SimpleNamespace(popen=True))
        hook(node=SimpleNamespace(config=config, workerinput=told, gateway=gateway))
    return told
