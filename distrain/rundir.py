"""The run directory: every path a run writes, and the way a file is replaced in one step.

    <run>/run.json                              plan with origins, versions, status
    <run>/events.jsonl                          life cycle: attempts, workers, exits
    <run>/attempt-0/rank-0/stdout.log           what each rank printed, per attempt
    <run>/attempt-0/rank-0/stderr.log
    <run>/attempt-0/rank-0/exception.json       its uncaught exception, when it had one
    <run>/attempt-0/rank-0/stacks.log           its Python stacks, when it crashed or was asked for them
    <run>/attempt-0/stacks.txt                  those of all ranks together, when one hung or somebody asked
    <run>/launcher.log                          what torch's elastic agent and the fork server had to say
    <run>/checkpoints/step-00000100/            written by rank 0
    <run>/smoke/                                what the ranks of a smoke test found; such a run is not kept
    <run>/metrics.jsonl
    <run>/failure.json  report.html
    <run>/requeue.json                          how often a scheduler was asked to queue the run again
    <run>/.rounds/00000003.json                 where the nodes of an elastic run meet, round by round

The launcher and the worker library meet here and in the environment, nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CHECKPOINT_META",
    "DEFAULT_PARENT",
    "ENV_LAUNCH_ID",
    "ENV_RUN_DIR",
    "ENV_SMOKE",
    "RunDir",
    "as_typed",
    "checkpoint_order",
    "new_run_name",
    "newest_checkpoint",
    "run_name_of",
    "step_of",
    "write_atomic",
    "write_once",
]

ENV_RUN_DIR = "DISTRAIN_RUN_DIR"
"""The environment variable that tells a worker its run directory (an absolute path)."""

ENV_LAUNCH_ID = "DISTRAIN_LAUNCH_ID"
"""The environment variable that names the launch: the same for its nodes and attempts, never the same twice. Without it
no `distrain launch` stands above a worker."""
ENV_SMOKE = "DISTRAIN_SMOKE_TEST"
"""The environment variable that makes a worker one of a smoke test: where it leaves what it finds."""

DEFAULT_PARENT = "runs"
"""Where runs are made when no run directory is given, below the current folder."""

CHECKPOINT_META = "meta.json"
"""The file of a checkpoint that says which one it is."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that has no hard links."""

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDir:
    """The paths of one run. Making an instance touches nothing on disk.

    Args:
        root: The run directory itself.
    """

    root: Path

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def launcher_log(self) -> Path:
        return self.root / "launcher.log"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def heartbeats(self) -> Path:
        return self.root / "heartbeats"

    @property
    def failure(self) -> Path:
        return self.root / "failure.json"

    @property
    def requeue(self) -> Path:
        return self.root / "requeue.json"

    @property
    def rounds(self) -> Path:
        return self.root / ".rounds"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def smoke(self) -> Path:
        return self.root / "smoke"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint taken after `step` iterations."""
        return self.checkpoints / f"step-{step:08d}"

    def node_dir(self, node: str) -> Path:
        """The directory of what another node of the same run records, by its number or its host."""
        return self.root / f"node-{node}"

    def attempt_dir(self, attempt: int) -> Path:
        return self.root / f"attempt-{attempt}"

    def rank_dir(self, attempt: int, rank: int) -> Path:
        return self.attempt_dir(attempt) / f"rank-{rank}"

    def stdout(self, attempt: int, rank: int) -> Path:
        return self.rank_dir(attempt, rank) / "stdout.log"

    def stderr(self, attempt: int, rank: int) -> Path:
        return self.rank_dir(attempt, rank) / "stderr.log"

    def exception(self, attempt: int, rank: int) -> Path:
        return self.rank_dir(attempt, rank) / "exception.json"

    def stacks(self, attempt: int, rank: int) -> Path:
        return self.rank_dir(attempt, rank) / "stacks.log"

    def flight(self, attempt: int, rank: int) -> Path:
        return self.rank_dir(attempt, rank) / "flight.json"

    def all_stacks(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "stacks.txt"

    def put_away_failure(self) -> None:
        """Move the report of an earlier launch to the attempt it tells of: `failure.json` is this launch's."""
        with contextlib.suppress(OSError):
            try:
                attempt = json.loads(self.failure.read_bytes())["root_cause"]["attempt"]
                os.replace(self.failure, self.attempt_dir(attempt) / self.failure.name)
            except (OSError, ValueError, KeyError, TypeError):
                self.failure.unlink(missing_ok=True)


def new_run_name(script: str) -> str:
    """Return a name for a new run, `<time>-<script>-<id>`: sorted by time, never the same twice.

    Args:
        script: The script's path or the module's name; its stem goes into the name.
    """
    stem = _word(Path(script).name.removesuffix(".py"))
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}-{os.urandom(3).hex()}"


def run_name_of(run_id: str, script: str) -> str:
    """Return the name of a run that has an id: the same on every node, and when the run is started again.

    Args:
        run_id: The id, any text.
        script: As for `new_run_name`.
    """
    return f"{_word(run_id)}-{_word(Path(script).name.removesuffix('.py'))}"


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:40] or "run"


def step_of(path: Path) -> int | None:
    """Return the step a checkpoint directory was taken at, or None when `path` is not one."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def checkpoint_order(path: Path) -> tuple[int, int] | None:
    """Return what checkpoints are in order by: the launch that wrote it, and its number; None where it cannot be read.

    Args:
        path: Its directory.
    """
    try:
        meta = json.loads((path / CHECKPOINT_META).read_bytes())
        return int(meta.get("incarnation", 0)), int(meta["number"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest_checkpoint(directory: Path) -> tuple[str, int] | None:
    """Return the name and the number of the newest checkpoint in a directory; None where there is none.

    Args:
        directory: The directory, which need not exist.
    """
    try:
        found = [path for path in directory.iterdir() if step_of(path) is not None]
    except OSError:
        return None
    ordered = [(order, step_of(path) or 0, path.name) for path in found if (order := checkpoint_order(path))]
    if not ordered:
        return None
    (_, number), _, name = max(ordered)
    return name, number


def as_typed(path: Path) -> str:
    """Return a path as a user would type it: relative when it is below the current folder.

    Args:
        path: An absolute path.
    """
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # the current folder may have been removed
        return str(path)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Replace the file at `path` by `data` in one step: a reader sees the old file or the new one, whole.

    Args:
        path: The file; its directory must exist.
        data: The new content; text is written as UTF-8.

    Raises:
        OSError: The directory is missing or not writable, or the disk is full. The old file is untouched.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        with open(draft, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_once(path: Path, data: str) -> bool:
    """Make a file that only one of several can make, on whichever hosts they are: whole from the first moment.

    Args:
        path: The file; its directory must exist.
        data: Its content, written as UTF-8.

    Returns:
        Whether it was not there.

    Raises:
        OSError: The directory is missing or not writable, or the disk is full.
    """
    draft = path.with_name(f".{path.stem}-{os.urandom(4).hex()}")
    try:
        draft.write_text(data, encoding="utf-8")
        os.link(draft, path)
    except FileExistsError:
        return draft.stat().st_nlink == 2  # a file server that was asked twice, for its first answer was lost
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _write_in_place(path, data)
    else:
        return True
    finally:
        draft.unlink(missing_ok=True)


def _write_in_place(path: Path, data: str) -> bool:
    """Write where it stands; until that is done a reader sees an empty file."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            try:
                file.write(data)
                file.flush()
            except BaseException:
                path.unlink()
                raise
    except FileExistsError:
        return False
    return True
