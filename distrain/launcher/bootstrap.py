"""From a forked child to a worker: the process becomes what `python -u train.py` would have been.

The fork server has imported torch and nothing else. What an interpreter has of its own from its start (its
session, environment, streams, random state, thread counts, name, `__main__`) is set here; the program then
runs at the bottom of the stack, and the interpreter ends by itself when it returns.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import importlib
import io
import os
import pkgutil
import runpy
import sys
import threading
import types
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from runpy import _run_module_as_main  # type: ignore[attr-defined]  # what `python -m` itself runs
from types import TracebackType
from typing import Any

from distrain.errors import LaunchError
from distrain.launcher import plain
from distrain.launcher.after_import import after_import
from distrain.launcher.amendments import amend_torch
from distrain.launcher.protocol import WorkerJob
from distrain.rundir import ENV_SMOKE, write_atomic
from distrain.supervision import flight, heartbeat
from distrain.supervision.dumps import STACKS_SIGNAL
from distrain.supervision.exception_record import encode, exception_record

__all__ = ["become", "become_plain", "become_rank_of_xla", "renew_random_state", "run"]

_server_main: types.ModuleType | None = None

_OPENBLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")

_STACKS_FD = 200

_OPTIMIZER = "torch.optim.optimizer"


def become(job: WorkerJob) -> None:
    """Give this forked child everything a fresh interpreter has of its own.

    Args:
        job: The rank to become.
    """
    os.setsid()
    _redirect(job.stdout, 1)
    _redirect(job.stderr, 2)
    os.environ.clear()
    os.environ.update(job.env)
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # noqa: SLF001 - fork leaves the server's
    if job.numa_binding:
        _bind_to_numa(job)
    heartbeat.open_slot(job.env.get(heartbeat.ENV_HEARTBEAT, ""))
    if not job.warm:
        words = plain.command(job)
        os.execvpe(words[0], words, job.env)  # noqa: S606 - no shell is wanted
    renew_random_state()
    _keep_sockets_in(job.scratch)
    _set_openblas_threads(job.env)
    amend_torch()
    _show_stacks_when_asked(job)
    _show_each_step(job)
    if ENV_SMOKE in job.env:
        # By name, in this process alone: nothing else of the launcher knows the workers' library.
        importlib.import_module("distrain.smoke").install()
    _set_title(job.command)


def become_plain(job: WorkerJob) -> None:
    """Give a plain interpreter what shows where its rank stands; it has the rank's streams and environment already.

    Args:
        job: The rank to become.
    """
    amend_torch()
    _show_stacks_when_asked(job)
    after_import(_OPTIMIZER, "register_optimizer_step_post_hook", functools.partial(_show_each_step, job))
    _set_title(job.command)


def become_rank_of_xla(job: WorkerJob) -> None:
    """Give a process that torch_xla started the streams and the environment of a rank.

    Args:
        job: The rank to become.
    """
    _redirect(job.stdout, 1)
    _redirect(job.stderr, 2)
    os.environ.update(job.env)
    heartbeat.open_slot(job.env.get(heartbeat.ENV_HEARTBEAT, ""))
    amend_torch()
    _show_stacks_when_asked(job)
    _show_each_step(job)
    _set_title(job.command)


def _redirect(path: str, fd: int) -> None:
    if not path:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY
    opened = os.open(path, flags, 0o666)
    os.dup2(opened, fd)
    os.close(opened)


def _bind_to_numa(job: WorkerJob) -> None:
    """Bind this process to the CPUs near its GPU, by torch's own code; what it executes later inherits that."""
    from torch.numa import binding

    options = binding.NumaOptions(affinity_mode=binding.AffinityMode(job.numa_binding))
    binding._maybe_apply_numa_binding_to_current_process(  # noqa: SLF001 - torch has no public name for it
        gpu_index=job.local_rank, numa_options=options
    )


def renew_random_state() -> None:
    """Draw anew what an interpreter and its libraries draw from the system when they start.

    `random` renews itself after a fork, `uuid` and `secrets` keep no state. Devices other than the CPU have a
    fixed first seed in torch, so theirs stays.
    """
    import multiprocessing
    import tempfile

    import torch

    torch.default_generator.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    multiprocessing.current_process().authkey = os.urandom(32)
    tempfile._name_sequence = None  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way


def _keep_sockets_in(folder: str) -> None:
    """Have multiprocessing keep its sockets in a folder that goes with the run.

    Each of its processes makes a folder of its own in the temporary directory, a DataLoader's too, and removes it when
    it ends by itself. After a rank's death or a signal to its session they do not.
    """
    if not folder:
        return
    from multiprocessing import process

    with contextlib.suppress(OSError):
        os.mkdir(folder, 0o700)
        process.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]  # noqa: SLF001 - no public way


def _set_openblas_threads(env: Mapping[str, str]) -> None:
    """Give OpenBLAS the thread count its environment asks for; the fork server had to load it with one.

    OpenMP and MKL read their variables when they are loaded, start no thread before they are used, and were
    loaded under this job's own values.
    """
    if "numpy" not in sys.modules:
        return
    from threadpoolctl import ThreadpoolController

    wanted = next((int(value) for name in _OPENBLAS_VARIABLES if (value := env.get(name, "")).isdigit()), None)
    if wanted is None:
        from distrain.plan.detect import visible_cpus

        wanted = visible_cpus()
    for library in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        if library.num_threads != wanted:
            library.set_num_threads(wanted)


def _show_stacks_when_asked(job: WorkerJob) -> None:
    """Have the Python stacks written to a file of the run directory in a crash, and at a signal from the launcher.

    The file's descriptor is a high one, so that the program's own get the numbers that they would get elsewhere.
    """
    try:
        fd = os.open(job.stacks_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:  # no room on the disk
        return
    with contextlib.suppress(OSError):  # where so many are not allowed it keeps the low one
        low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STACKS_FD)
        os.close(low)
    if not faulthandler.is_enabled():  # else the user wants it on standard error
        faulthandler.enable(fd)
    faulthandler.register(STACKS_SIGNAL, fd)


def _show_each_step(job: WorkerJob) -> None:
    """Have every optimizer's step seen on the board, whatever loop it is in."""

    def answer() -> int:
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return 0
        # By now the process has threads, of the group and of the backward pass: one more changes nothing for its forks.
        return flight.begin_to_answer(Path(job.stacks_file).with_name("flight.json")) if job.stacks_file else 0

    optimizer = sys.modules.get(_OPTIMIZER)
    stamp = heartbeat.optimizer_stamp(answer)
    if optimizer is not None and stamp is not None:
        optimizer.register_optimizer_step_post_hook(stamp)


def _set_title(command: list[str]) -> None:
    """Let `ps` and `pkill -f train.py` find this process under the command line it stands for.

    The thread's own name, which `top` shows, stays the interpreter's.
    """
    import setproctitle

    name = setproctitle.getthreadtitle()
    setproctitle.setproctitle(" ".join(command))
    setproctitle.setthreadtitle(name)


def run(job: WorkerJob, problem: str = "") -> None:
    """Run the program as `__main__`, the way the interpreter's own start does.

    Args:
        job: The rank this process has become.
        problem: Why the program cannot run as this rank, which is raised in its place; "" where it can.

    Raises:
        LaunchError: It cannot.
    """
    sys.argv = [job.target, *job.args]
    sys.orig_argv = list(job.command)
    rank_pid = os.getpid()
    try:
        if problem:
            raise LaunchError(problem)
        _prepare(job)()
    except SystemExit as end:
        if end.code not in (None, 0) and os.getpid() == rank_pid:
            _record(end, _own_frames(end.__traceback__), job)
        raise
    except BaseException as error:
        own = _own_frames(error.__traceback__)
        if not isinstance(error, KeyboardInterrupt) and os.getpid() == rank_pid:  # what the program forks is not it
            _record(error, own, job)
        _hide_own_frames()
        raise


def _prepare(job: WorkerJob) -> Callable[[], object]:
    """Set `sys.path` and `__main__` as the interpreter does before it runs a program; return the call that runs it."""
    main = _fresh_main()
    safe_path = getattr(sys.flags, "safe_path", False)
    if job.kind == "module":
        sys.argv[0] = "-m"
        if not safe_path:
            sys.path.insert(0, os.getcwd())
        return functools.partial(_run_module_as_main, job.target)
    if job.kind == "path":
        sys.path.insert(0, "")
        return functools.partial(runpy.run_path, job.target, run_name="__main__")
    path = _absolute(job.target)
    if pkgutil.get_importer(path) is not None:  # a folder or an archive with a __main__.py
        sys.path.insert(0, path)
        return functools.partial(_run_module_as_main, "__main__", alter_argv=False)
    if not safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    sourceless = path.endswith(".pyc")
    loader = (SourcelessFileLoader if sourceless else SourceFileLoader)("__main__", path)
    main.update(__file__=path, __cached__=None, __loader__=loader)

    def run_script() -> None:
        if sourceless:
            code = loader.get_code("__main__")
            assert code is not None
        else:
            with io.open_code(path) as file:
                code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, main)  # noqa: S102 - running the program is what we are for

    return run_script


def _fresh_main() -> dict[str, Any]:
    """Put a new `__main__` in place and return its namespace.

    The old one belongs to the memory that the garbage collector was told to leave alone: what a program puts there
    would never be torn down. The interpreter still runs its code, so it is kept.
    """
    global _server_main
    _server_main = sys.modules["__main__"]
    main = types.ModuleType("__main__")
    vars(main).update({name: value for name, value in vars(_server_main).items() if name.startswith("__")})
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # multiprocessing's other name for it
        sys.modules["__mp_main__"] = main
    return vars(main)


def _absolute(path: str) -> str:
    """Make `path` absolute as CPython does for `__file__`: put before it the current folder, resolve nothing."""
    return path if os.path.isabs(path) else f"{os.getcwd()}/{path}"


def _own_frames(trace: TracebackType | None) -> int:
    """Count the frames at the bottom of the stack that are the launcher's and not the program's."""
    count = 0
    while trace is not None and (
        trace.tb_frame.f_globals.get("__name__", "").startswith(("distrain.launcher.", "torch_xla."))
        or trace.tb_frame.f_code.co_filename == "<string>"
    ):
        count += 1
        trace = trace.tb_next
    return count


def _without(frames: int, trace: TracebackType | None) -> TracebackType | None:
    for _ in range(frames):
        trace = trace.tb_next if trace is not None else None
    return trace


def _hide_own_frames() -> None:
    """Have the report of the uncaught exception begin in the program, as it does without a launcher.

    The exception goes on up to the interpreter itself, so that its own way of ending is kept: the exit code,
    the signal after a KeyboardInterrupt, the exit functions.
    """
    report = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        trace = _without(_own_frames(trace), trace)
        error = error.with_traceback(trace)
        try:
            report(kind, error, trace)
        except SystemExit:
            raise
        except BaseException as second:  # noqa: BLE001 - as the interpreter does, but without our frame
            print("Error in sys.excepthook:", file=sys.stderr)
            _display(second, _without(1, second.__traceback__))
            print("\nOriginal exception was:", file=sys.stderr)
            _display(error, trace)

    sys.excepthook = excepthook


def _display(error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(type(error), error.with_traceback(trace), trace)


def _record(error: BaseException, own_frames: int, job: WorkerJob) -> None:
    """Leave word of the uncaught exception where the supervisor finds it; what cannot be written is left out."""
    record = encode(exception_record(error, _without(own_frames, error.__traceback__), rank=job.rank))
    heartbeat.leave_record(record)
    with contextlib.suppress(OSError):
        write_atomic(Path(job.error_file), record)
