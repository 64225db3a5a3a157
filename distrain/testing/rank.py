"""A rank of a distributed test: a child of the warm server that runs one test, phase by phase, and tells how it went.

    ready (fds) ──► setup ──► «go» ──► call ──► «go» ──► teardown, warnings ──► os._exit

After each phase the rank sends its pytest's report and waits for word: a peer may have failed meanwhile. A subtest's
report is sent when the subtest ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import os
import pickle
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Generator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import pytest
from _pytest.runner import check_interactive_exception

from distrain.launcher.bootstrap import renew_random_state
from distrain.launcher.interface import gloo_variables
from distrain.rundir import ENV_RUN_DIR
from distrain.runtime.environment import ENV_DEVICE
from distrain.supervision.dumps import STACKS_SIGNAL
from distrain.testing.faults import Faults, InjectedFault
from distrain.testing.plugin import RANK
from distrain.testing.subtests import contains_failed, to_be_sent

__all__ = ["Job", "Rank", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a rank is told.

    Args:
        rank: Its number.
        num_ranks: Of how many.
        port: Of the store.
        env: The environment of pytest's process.
        directory: Its current folder.
        shared: The shared fixtures' values, pickled.
        folder: The test's `tmp_path`.
    """

    rank: int
    num_ranks: int
    port: int
    env: dict[str, str]
    directory: str
    shared: dict[str, bytes]
    folder: Path


def main(item: pytest.Item, job: Job, connection: Connection) -> NoReturn:
    """Become a rank, run the test, and end.

    Args:
        item: The test, as the server collected it.
        job: What is to be known about this rank.
        connection: To pytest's process.
    """
    code = 1
    try:
        assert isinstance(item, pytest.Function)
        _become(job)
        files = [*_captured_files(item.config), _stacks_file()]
        connection.send(("ready", len(files)))
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            socket.send_fds(sock, [b"."], [file.fileno() for file in files])
        me = Rank(job=job, config=item.config, connection=connection)
        item.config.stash[RANK] = me
        item.config.pluginmanager.register(me)
        values = {name: pickle.loads(value) for name, value in job.shared.items()}  # noqa: S301 - pytest's own process sent it
        _use_shared_values(item, values)
        _own_temporary_folders(item.config, job)
        _refuse_pdb()
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        _save_coverage()
        connection.send(("done",))
        code = 0
    except _EndedError:
        pass
    except BaseException:  # noqa: BLE001 - an error of the plugin itself; told, and the process ends
        with contextlib.suppress(OSError):
            import traceback

            connection.send(("broken", traceback.format_exc()))
    finally:
        os._exit(code)


def _save_coverage() -> None:
    """Write what pytest-cov has measured here, for pytest's process to add to its own: no exit function will."""
    coverage = sys.modules.get("coverage")
    measuring = coverage.Coverage.current() if coverage is not None else None
    if measuring is not None:
        measuring.stop()
        measuring.save()


class _EndedError(BaseException):
    """Pytest's process has no more use for this rank."""


@dataclass(kw_only=True, eq=False)  # a plugin must be hashable
class Rank:
    """This rank, as its pytest's hooks and the fixtures see it.

    Args:
        job: As told.
        config: Of its pytest.
        connection: To pytest's process.
        num_failed_subtests: So far.
        all_passed: Whether every rank is still there and has passed so far; what the teardown goes by.
    """

    job: Job
    config: pytest.Config
    connection: Connection
    num_failed_subtests: int = 0
    all_passed: bool = False
    faults: Faults = field(init=False)

    def __post_init__(self) -> None:
        self.faults = Faults(self.job.rank, self.job.num_ranks, lambda kind: self.connection.send(("hit", kind)))

    @property
    def run_dir(self) -> Path:
        return Path(os.environ[ENV_RUN_DIR])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool:
        for when in ("setup", "call"):
            report = _phase(item, when)
            if when == "call" and report.passed and self.num_failed_subtests:
                report.outcome = "failed"
                report.longrepr = contains_failed(self.num_failed_subtests)
            self._tell(when, report)
            word, self.all_passed = self._hear()
            if word == "teardown":
                break
        else:
            raise AssertionError("the word after the call is teardown")
        self._tell("teardown", _phase(item, "teardown", nextitem=None))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send what is reported inside a phase, a subtest; a rank does not log its phases."""
        self.num_failed_subtests += report.failed
        self._tell("subtest", to_be_sent(report))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, InjectedFault):
            # As if the program had ended of it, so that the peers see the connections close.
            self.connection.send(("hit", "raise"))
            os._exit(1)
        return report

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        self.connection.send(
            (
                "warning",
                {
                    "text": str(warning_message.message),
                    "category": f"{warning_message.category.__module__}:{warning_message.category.__qualname__}",
                    "filename": warning_message.filename,
                    "lineno": warning_message.lineno,
                    "when": when,
                    "nodeid": nodeid,
                    "location": location,
                },
            )
        )

    def _tell(self, word: str, report: pytest.TestReport) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        try:
            self.connection.send((word, data))
        except (TypeError, AttributeError, pickle.PicklingError):  # record_property was given something
            data["user_properties"] = [(name, repr(value)) for name, value in report.user_properties]
            self.connection.send((word, data))

    def _hear(self) -> tuple[str, bool]:
        try:
            word, all_passed = self.connection.recv()
        except (EOFError, OSError):
            raise _EndedError from None
        return word, all_passed


def _phase(item: pytest.Item, when: Literal["setup", "call", "teardown"], **options: Any) -> pytest.TestReport:
    """Do one phase of a test as pytest does, but report any end of it: KeyboardInterrupt and pytest.exit(), too.

    In pytest's own process they end the whole run, and a rank has only its test.
    """
    hook = getattr(item.ihook, f"pytest_runtest_{when}")
    call = pytest.CallInfo.from_call(functools.partial(hook, item=item, **options), when=when)
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    if check_interactive_exception(call, report):
        item.ihook.pytest_exception_interact(node=item, call=call, report=report)
    return report


def _become(job: Job) -> None:
    """Have the environment, the folder, the random state, the signals and the garbage collector of a fresh process."""
    gc.enable()  # the server does without
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(job.env)
    os.environ.update(
        {
            "RANK": str(job.rank),
            "LOCAL_RANK": str(job.rank),
            "GROUP_RANK": "0",
            "ROLE_RANK": str(job.rank),
            "WORLD_SIZE": str(job.num_ranks),
            "LOCAL_WORLD_SIZE": str(job.num_ranks),
            "GROUP_WORLD_SIZE": "1",
            "ROLE_WORLD_SIZE": str(job.num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(job.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "OMP_NUM_THREADS": "1",
            ENV_DEVICE: "cpu",
            ENV_RUN_DIR: str(job.folder / "run"),
            **gloo_variables(os.environ, "127.0.0.1"),
        }
    )
    os.chdir(job.directory)
    renew_random_state()


def _captured_files(config: pytest.Config) -> list[IO[Any]]:
    """Capture into files of this rank's own, and return those that another process can read, if it must."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    manager.stop_global_capturing()
    manager.start_global_capturing()
    manager.suspend_global_capture()
    capturing = manager._global_capturing  # noqa: SLF001 - what a rank printed must be read when it was killed
    files = [getattr(stream, "tmpfile", None) for stream in (capturing.out, capturing.err)]
    with contextlib.suppress(OSError, AttributeError):  # captured in memory
        return [file for file in files if file is not None and file.fileno() >= 0]
    return []


def _stacks_file() -> IO[bytes]:
    """Have Python's stacks written to a file, in a crash and when asked."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as the process
    faulthandler.enable(file)
    faulthandler.register(STACKS_SIGNAL, file)
    return file


def _use_shared_values(item: pytest.Function, values: dict[str, Any]) -> None:
    """Let the shared fixtures return what pytest's process made, and leave out what only they needed."""
    definitions = item._fixtureinfo.name2fixturedefs  # noqa: SLF001 - pytest has no public way to replace a fixture
    for name, value in values.items():
        for definition in definitions.get(name, ())[-1:]:
            definition.argnames = ()  # type: ignore[misc]
            definition.func = _returning(value)  # type: ignore[misc]
    needed, names = set(), list(item._fixtureinfo.initialnames)  # noqa: SLF001
    while names:
        name = names.pop()
        if name not in needed:
            needed.add(name)
            found = definitions.get(name, ())
            names.extend(argument for each in (found[-1:] if name in values else found) for argument in each.argnames)
    item.fixturenames = [name for name in item.fixturenames if name in needed]


def _returning(value: Any) -> Any:
    def shared_value() -> Any:
        return value

    return shared_value


def _own_temporary_folders(config: pytest.Config, job: Job) -> None:
    """Keep `tmp_path_factory` of this rank apart from those of other ranks and of other tests."""
    factory: Any = getattr(config, "_tmp_path_factory", None)
    if factory is not None:
        folder = job.folder.with_name(f"{job.folder.name}-rank-{job.rank}")
        factory._given_basetemp = folder  # noqa: SLF001 - made, empty, when it is first asked for
        factory._basetemp = None  # noqa: SLF001


def _refuse_pdb() -> None:
    import pdb  # noqa: T100 - to keep it out

    def refuse(*_: Any, **__: Any) -> NoReturn:
        from distrain.testing.plugin import NO_PDB

        pytest.fail(NO_PDB)

    sys.breakpointhook = refuse
    pdb.set_trace = refuse
    pytest.set_trace = refuse
