"""`distrain launch` under test: run it to its end, or start it and act on it while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.processes import REPOSITORY, Finished, descendants, kill_all, run, wait_until

__all__ = ["Live", "events", "launch", "launching"]


def command(*args: str | os.PathLike[str]) -> list[str]:
    """Return the command line of `distrain launch` with `args`, as the checkout's own package."""
    return [sys.executable, "-m", "distrain", "launch", *map(os.fspath, args)]


def environment(env: Mapping[str, str | None] | None = None) -> dict[str, str | None]:
    """Return `env` with the checkout on the path, and without what would change a launch."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), (env or {}).get("PYTHONPATH")]))
    return {"OMP_NUM_THREADS": None, **(env or {}), "PYTHONPATH": path}


def launch(
    *args: str | os.PathLike[str],
    cwd: str | os.PathLike[str],
    env: Mapping[str, str | None] | None = None,
    deadline_s: float = 100,
    stdin: int | None = subprocess.DEVNULL,
) -> Finished:
    """Run `distrain launch` with `args` to its end."""
    return run(command(*args), cwd=cwd, env=environment(env), deadline_s=deadline_s, stdin=stdin)


def events(run_dir: Path, name: str | None = None) -> list[dict[str, Any]]:
    """Return the events a run has recorded so far, all or those called `name`."""
    try:
        lines = (run_dir / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = [json.loads(line) for line in lines]
    return [event for event in found if name in (None, event["event"])]


@dataclass(slots=True, kw_only=True)
class Live:
    """A launch that is running.

    Args:
        process: The supervisor.
        run_dir: Its run directory.
    """

    process: subprocess.Popen[bytes]
    run_dir: Path
    out: IO[bytes]
    err: IO[bytes]

    def printed(self) -> str:
        """Return what it has printed on standard error so far.

        The file's position is the process's as well, so it is left alone: moving it back would have the process write
        over what it wrote.
        """
        return os.pread(self.err.fileno(), os.fstat(self.err.fileno()).st_size, 0).decode()

    def wait_for(self, name: str, count: int = 1, deadline_s: float = 100) -> list[dict[str, Any]]:
        """Return the events called `name` once there are `count` of them."""
        return wait_until(
            lambda: found if len(found := events(self.run_dir, name)) >= count else [],
            deadline_s,
            what=f"{count} × {name}",
        )

    def wait_for_output(self, text: str, rank: int = 0, attempt: int = 0, deadline_s: float = 100) -> None:
        """Return once `text` stands in a rank's standard output on disk."""
        path = self.run_dir / f"attempt-{attempt}" / f"rank-{rank}" / "stdout.log"
        wait_until(lambda: path.exists() and text in path.read_text(), deadline_s, what=f"{text!r} in {path}")

    def wait_for_checkpoint(self, run_dir: Path, deadline_s: float = 100) -> None:
        """Return once the run has saved its first checkpoint."""
        wait_until(lambda: any(run_dir.glob("checkpoints/step-*")), deadline_s, what="the first checkpoint")

    def end(self, deadline_s: float = 100) -> tuple[int, str, str]:
        """Wait for the supervisor's own end; return its exit code and what it printed on both streams."""
        code = self.process.wait(deadline_s)
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode())
        return code, texts[0], texts[1]


@contextlib.contextmanager
def launching(
    *args: str | os.PathLike[str],
    cwd: Path,
    env: Mapping[str, str | None] | None = None,
    before: Sequence[str] = (),
) -> Iterator[Live]:
    """Start `distrain launch --run-dir cwd/run` with `args`; whatever is left of it afterwards is killed.

    Args:
        *args: Options, script and its arguments.
        cwd: Where it runs.
        env: Changes to this process's environment.
        before: A command that starts it, such as `nohup`.
    """
    whole = {key: value for key, value in {**os.environ, **environment(env)}.items() if value is not None}
    run_dir = cwd / "run"
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [*before, *command("--run-dir", run_dir, *args)],
            cwd=cwd,
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
