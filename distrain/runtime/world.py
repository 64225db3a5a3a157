"""The world of this worker: who it is, where it computes, and how that begins and ends."""

from __future__ import annotations

import atexit
import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from distrain.errors import RunDirError, RuntimeStateError, StoppedBySignal
from distrain.rundir import DEFAULT_PARENT, new_run_name
from distrain.runtime import process_group
from distrain.runtime.devices import choose_device
from distrain.runtime.environment import WorkerEnvironment, read_environment
from distrain.runtime.seeding import seed_everything

__all__ = ["World", "current_world", "init"]

EXIT_WAIT_S = 5.0
"""How long a script that did not use `with` waits at its exit for the peers. It cannot know whether it ended well
(`sys.exit(3)` looks like success to `atexit`), so it must not wait for long."""

RUN_DIR_KEY = "run_dir"

_current: World | None = None


@dataclass(slots=True, kw_only=True)
class Session:
    """What changes while a world is open; for this module only."""

    owns_group: bool
    run_dir: Path | None
    excepthook: Callable[..., Any]
    closed: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This worker's place among all workers; `init` makes it.

    Args:
        rank: Number of this worker among all, from 0.
        world_size: Number of workers.
        local_rank: Number of this worker among those of its node, from 0.
        local_world_size: Number of workers on this node.
        device: Where this worker computes.
        session: For this module only.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    session: Session = field(repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and talks to people."""
        return self.rank == 0

    @property
    def run_dir(self) -> Path:
        """The run directory: an absolute path, the same on every rank, made when first asked for.

        It is the launcher's (`DISTRAIN_RUN_DIR`), else the one given to `init`, else a new `runs/<time>-<script>-<id>`
        under the current directory. Any rank may ask at any time, alone too: the first to ask proposes a name in the
        group's store, and all take that one. No rank waits for another.

        Raises:
            RunDirError: It cannot be made or is not writable.
            RuntimeStateError: The world was closed before anybody had asked.
        """
        session = self.session
        if session.run_dir is None:
            session.run_dir = self._agree_on_run_dir()
        try:
            session.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(
                f"The run directory {session.run_dir} cannot be made: {error.strerror}. Give another with --run-dir "
                "or init(run_dir=…)."
            ) from error
        return session.run_dir

    def barrier(self) -> None:
        """Wait until every rank is here and this rank's device has done what it was given.

        Raises:
            RuntimeStateError: The world is closed.
            RuntimeError: A peer went away, or did not come within the group's timeout.
        """
        self._check_open()
        process_group.barrier(self.device)

    def close(self) -> None:
        """Wait for all ranks, then destroy the process group if `init` made it. Closing twice does nothing.

        Warns:
            RuntimeWarning: A peer went away before its end. This rank's own work is done by then, so it is not an
                error here; the peer's launcher reports the peer.
        """
        session = self.session
        if session.closed:
            return
        session.closed = True
        _forget(self)
        if session.owns_group and dist.is_initialized():
            try:
                process_group.barrier(self.device)
            except RuntimeError as error:
                warnings.warn(
                    f"Rank {self.rank} has ended well, but a peer went away before its own end: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            _destroy(self.session)

    def __enter__(self) -> World:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_end = isinstance(error, SystemExit) and (error.code in (None, 0) or isinstance(error, StoppedBySignal))
        if error is None or is_end:
            self.close()
        else:
            # The peers may be inside a collective operation that this rank never joins: waiting for them would turn
            # an error into a hang. They learn of it as soon as this process ends and its connections close.
            self.session.failed = True

    def _agree_on_run_dir(self) -> Path:
        script = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-", "-c") else "python"
        proposal = str(Path.cwd() / DEFAULT_PARENT / new_run_name(script))
        if self.world_size == 1:
            return Path(proposal)
        self._check_open()
        return Path(os.fsdecode(process_group.default_store().compare_set(RUN_DIR_KEY, "", proposal)))

    def _check_open(self) -> None:
        if self.session.closed or not dist.is_initialized():
            raise RuntimeStateError("This World is closed: its process group is gone. Call distrain.init() anew.")


def init(
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
    timeout_s: float | None = None,
    run_dir: str | os.PathLike[str] | None = None,
) -> World:
    """Join the other workers: find this worker's place and device, make the process group, seed the generators.

    Works under `distrain launch`, under torchrun, and with no launcher as a world of one. Use it in a `with`
    statement; a script that cannot is torn down at its exit. A process group that exists already is taken as it is
    and left alone at the end.

    Args:
        seed: Seeds Python, NumPy and torch (all devices), the same on every rank: splits of the data must agree, and
            DDP gives all ranks the weights of rank 0. None leaves the generators alone.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or None for the launcher's choice: CUDA where there is any, else CPU.
        timeout_s: Seconds after which a collective operation gives up; None for torch's default (30 minutes). Short
            times break the start on a busy machine.
        run_dir: The run directory when the launcher did not set one; see `World.run_dir`.

    Raises:
        UsageError: The environment is half set or contradicts itself.
        RuntimeStateError: The device cannot be used here, or a world is open already.
        ValueError: The seed is out of range, the timeout is no number above 0, or torch does not know the device.
    """
    global _current
    timeout_s = _checked_timeout(timeout_s)
    if _current is not None:
        if not _current.session.failed:
            raise RuntimeStateError(
                "distrain.init() was called already in this process. Use the World it returned, or close it first."
            )
        _abandon(_current)
    environment = read_environment()
    adopted = dist.is_available() and dist.is_initialized()
    if adopted:
        environment = _of_existing_group(environment)
        if timeout_s is not None:
            warnings.warn(
                "init(timeout_s=…) is ignored: the process group exists already, with its own timeout.", stacklevel=2
            )
    chosen = choose_device(device, environment)
    if seed is not None:
        seed_everything(seed)
    excepthook = sys.excepthook
    if not adopted:
        process_group.set_up(environment, chosen, timeout_s)
    world = World(
        rank=environment.rank,
        world_size=environment.world_size,
        local_rank=environment.local_rank,
        local_world_size=environment.local_world_size,
        device=chosen,
        session=Session(owns_group=not adopted, run_dir=_given_run_dir(run_dir, environment), excepthook=excepthook),
    )
    _current = world
    atexit.register(_close_at_exit)
    return world


def current_world() -> World | None:
    """Return the world that is open in this process, or None."""
    return _current


def _of_existing_group(environment: WorkerEnvironment) -> WorkerEnvironment:
    """Return the place that the user's own process group gives; without a launcher it is taken to be one node."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if environment.launched:
        if (rank, world_size) != (environment.rank, environment.world_size):
            raise RuntimeStateError(
                f"The existing process group has rank {rank} of {world_size}; the environment says rank "
                f"{environment.rank} of {environment.world_size}. Make the group from the environment, or let "
                "distrain.init() make it."
            )
        return environment
    return WorkerEnvironment(
        launched=True,
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        local_world_size=world_size,
        device=environment.device,
        run_dir=environment.run_dir,
    )


def _checked_timeout(timeout_s: Any) -> float | None:
    if timeout_s is None:
        return None
    seconds = 0.0 if isinstance(timeout_s, bool) or not isinstance(timeout_s, Real) else float(timeout_s)
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"timeout_s is {timeout_s!r}; it must be a number of seconds above 0, or None for torch's default."
        )
    return seconds


def _given_run_dir(argument: str | os.PathLike[str] | None, environment: WorkerEnvironment) -> Path | None:
    given = None if argument is None else Path(os.path.abspath(argument))
    if environment.run_dir is None:
        return given
    if given is not None and given != environment.run_dir and environment.rank == 0:
        warnings.warn(
            f"init(run_dir={str(argument)!r}) is ignored: the launcher set the run directory {environment.run_dir}.",
            stacklevel=3,
        )
    return environment.run_dir


def _forget(world: World) -> None:
    global _current
    if _current is world:
        _current = None
        atexit.unregister(_close_at_exit)


def _abandon(world: World) -> None:
    """Destroy the group of a world whose body failed, without waiting for anybody."""
    world.session.closed = True
    _forget(world)
    if world.session.owns_group and dist.is_initialized():
        _destroy(world.session)


def _destroy(session: Session) -> None:
    process_group.destroy()
    process_group.restore_excepthook(session.excepthook)


def _close_at_exit() -> None:
    world = _current
    if world is None:
        return
    session = world.session
    session.closed = True
    _forget(world)
    if not (session.owns_group and dist.is_initialized()):
        return
    failed = session.failed or getattr(sys, "last_value", None) is not None
    if not failed and process_group.meet_in_store(world.world_size, EXIT_WAIT_S):
        _destroy(world.session)
    else:
        process_group.leave()
