"""The warm server: a pytest that runs no test of its own, but forks the ranks that do.

It is configured as the pytest that started it, and is to plugins what a worker of pytest-xdist is (`workerinput`):
they write no cache and no report. Its loop over tests answers requests, one after the other:

    collect PATH NODEID        import the module, unless it was; find the test
    start NODEID NUM JOB       fork NUM ranks; the answer is followed by a socket to each
    how_it_ended · end_ranks

When the other end closes, for whatever reason, everything that was started here is killed; the guard above this process
does so where it cannot.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

from _pytest import assertion
from _pytest.config import create_terminal_writer
from _pytest.main import wrap_session  # what `pytest` itself and pytest-xdist's workers run

from distrain.launcher.forkserver import AGENT_PRELOAD, WORKER_PRELOAD
from distrain.supervision.process_state import num_threads
from distrain.supervision.reaping import adopt_orphans, die_with_parent, kill_descendants, outlive_parent
from distrain.testing import rank
from distrain.testing.store_host import StoreHost
from distrain.testing.warm_server import LEFT_OUT

if TYPE_CHECKING:
    import pytest

__all__ = ["main"]

_HAS_ENDED_S = 5.0

_OF_THE_OTHER_PROCESS = {
    "usepdb": False, "trace": False, "lf": False, "failedfirst": False, "newfirst": False, "stepwise": False,
    "keyword": "", "markexpr": "", "deselect": None, "collectonly": False, "log_file": os.devnull, "basetemp": None,
    "dist": "no", "distload": False, "looponfail": False, "numprocesses": None, "maxprocesses": None, "tx": [],
    "setupshow": False,
}  # fmt: skip
"""Options that only the pytest with the terminal acts on: what is selected, shown, reported, cached and distributed."""


def main(config: pytest.Config, *, fd: int, parent_pid: int) -> NoReturn:
    """Be the server until the other end closes.

    Args:
        config: Parsed, not yet configured.
        fd: The socket to pytest's process.
        parent_pid: The guard between the two.
    """
    for name, value in _OF_THE_OTHER_PROCESS.items():
        if hasattr(config.option, name):
            setattr(config.option, name, value)
    for name in LEFT_OUT:
        config.pluginmanager.unregister(name=name)
    # pytest has none without its terminal plugin, and 8.2 and 8.4 ask for it to explain a comparison.
    writer = create_terminal_writer(config, io.StringIO())
    config.get_terminal_writer = lambda: writer  # type: ignore[method-assign]
    control = socket.socket(fileno=fd)
    config.workerinput = Connection(os.dup(fd)).recv()  # type: ignore[attr-defined]
    wrap_session(config, lambda config, session: _Server(config, session, control, parent_pid).serve())
    os._exit(1)  # only an error leads here; it is in the log


class _Server:
    def __init__(self, config: pytest.Config, session: pytest.Session, control: socket.socket, parent_pid: int) -> None:
        self._config = config
        self._session = session
        self._sock = control
        self._control = Connection(os.dup(control.fileno()))
        self._parent_pid = parent_pid
        self._items: dict[str, dict[str, pytest.Item]] = {}
        self._failures: list[str] = []
        self._ended: dict[int, int] = {}
        self._ranks: set[int] = set()
        config.pluginmanager.register(self)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._failures.append(str(report.longrepr))

    def serve(self) -> NoReturn:
        gc.disable()  # what is imported stays
        for name in (*AGENT_PRELOAD, *WORKER_PRELOAD, "distrain.runtime"):
            importlib.import_module(name)
        adopt_orphans()
        self._store = StoreHost.fork()
        outlive_parent(self._parent_pid)
        gc.collect()
        gc.freeze()
        try:
            while True:
                op, *args = self._control.recv()
                self._answer(op, args)
        except (EOFError, OSError):
            kill_descendants()
            os._exit(0)

    def _answer(self, op: str, args: list[Any]) -> None:
        try:
            value = getattr(self, f"_{op}")(*args)
        except _CannotError as error:
            self._control.send(("error", str(error)))
            return
        except _SpoiltError as error:
            self._control.send(("spoilt", str(error)))
            return
        if op != "start":
            self._control.send(("ok", value))

    def _collect(self, path: str, nodeid: str) -> None:
        if path not in self._items:
            self._failures.clear()
            assertion.pytest_collection(self._session)  # rewrites a file of any name that is asked for
            items = self._session.perform_collect([path])
            if self._failures:
                raise _CannotError("\n".join(self._failures))
            self._items[path] = {item.nodeid: item for item in items}
            gc.collect()
            gc.freeze()  # ranks share the memory of what their own garbage collector leaves alone
        if nodeid not in self._items[path]:
            raise _CannotError(
                f"{nodeid} is not among the tests that the ranks' pytest finds in {path}. Tests and their parameters "
                "must be the same each time the module is imported; sets and random numbers in parametrize are not."
            )
        if (threads := num_threads()) > 1:
            names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            raise _SpoiltError(
                f"Ranks cannot be forked: the import of {path} has left {threads - 1} thread(s) running "
                f"({', '.join(names) or 'of a C library'}). Start them in a fixture."
            )

    def _start(self, nodeid: str, num_ranks: int, job: dict[str, Any]) -> None:
        item = next(items[nodeid] for items in self._items.values() if nodeid in items)
        port = self._store.new_store()
        pairs = [socket.socketpair() for _ in range(num_ranks)]
        server_pid = os.getpid()
        pids = []
        for number, (_, theirs) in enumerate(pairs):
            pid = os.fork()
            if pid == 0:
                die_with_parent(server_pid)
                connection = Connection(os.dup(theirs.fileno()))
                for pair in pairs:
                    for sock in pair:
                        sock.close()
                self._control.close()
                self._sock.close()
                self._store.close()
                rank.main(item, rank.Job(rank=number, num_ranks=num_ranks, port=port, **job), connection)
            pids.append(pid)
        self._ranks.update(pids)
        self._control.send(("ok", pids))
        socket.send_fds(self._sock, [b"."], [ours.fileno() for ours, _ in pairs])
        for pair in pairs:
            for sock in pair:
                sock.close()

    def _how_it_ended(self, pid: int) -> int | None:
        end = time.monotonic() + _HAS_ENDED_S
        while (code := self._exit_code(pid)) is None and time.monotonic() < end:
            time.sleep(0.002)
        return code

    def _exit_code(self, pid: int) -> int | None:
        if pid not in self._ended:
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                return None
            self._ended[pid] = os.waitstatus_to_exitcode(status)
        return self._ended[pid]

    def _end_ranks(self) -> None:
        for pid in self._ranks - self._ended.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        kill_descendants(spare=frozenset({self._store.pid}))
        self._ranks.clear()
        self._ended.clear()


class _CannotError(Exception):
    """The request cannot be done, in words for the user."""


class _SpoiltError(Exception):
    """Likewise, and nor can any other."""
