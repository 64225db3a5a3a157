"""Where each rank's output goes: the run directory, and what torchrun's users expect beside it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, Std

from distrain.launcher.protocol import AgentJob
from distrain.launcher.torch_releases import logs_dest
from distrain.rundir import RunDir

__all__ = ["RunDirLogs"]


class RunDirLogs(LogsSpecs):
    """Send each rank's output to the run directory, or to the terminal devices the supervisor opened for it.

    Torch counts restarts; an attempt is every round of workers, also one after a change of membership, which
    torch does not count and for which it would overwrite the logs.

    With `--log-dir` the files also appear under the names that torchrun gives them, as links. With `--logs-specs`
    the user's own class says where the output goes, and the links are in the run directory.

    Args:
        job: The agent's job.
    """

    def __init__(self, job: AgentJob) -> None:
        super().__init__(log_dir=job.run_dir)
        self._rundir = RunDir(root=Path(job.run_dir))
        self._terminals = job.terminals
        self._job = job
        self._mirror: Path | None = None
        self._users: LogsSpecs | None = _users_specs(job)
        self.attempt = job.first_attempt - 1

    @property
    def root_log_dir(self) -> str:
        return str(self._root_log_dir)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the folders of the next attempt and tell where each local rank's output goes."""
        self.attempt += 1
        users = None if self._users is None else self._users.reify(envs)
        found = logs_dest(
            filtered_stdout=str(self._rundir.attempt_dir(self.attempt) / "filtered_stdout.log"),
            filtered_stderr=str(self._rundir.attempt_dir(self.attempt) / "filtered_stderr.log"),
        )
        for local_rank, env in envs.items():
            rank = int(env["RANK"])
            folder = self._rundir.rank_dir(self.attempt, rank)
            folder.mkdir(parents=True, exist_ok=True)
            files = (self._rundir.stdout(self.attempt, rank), self._rundir.stderr(self.attempt, rank))
            if users is not None:
                for path, theirs in zip(files, (users.stdouts[local_rank], users.stderrs[local_rank]), strict=True):
                    _link(path, theirs)
            streams = self._terminals.get(str(rank)) or [str(path) for path in files]
            found.stdouts[local_rank], found.stderrs[local_rank] = streams
            found.tee_stdouts[local_rank], found.tee_stderrs[local_rank] = map(str, files)
            found.error_files[local_rank] = env["TORCHELASTIC_ERROR_FILE"] = str(folder / "error.json")
            self._show_as_torchrun(env, local_rank, [*files, folder / "error.json"])
        self._show_filtered(found)
        return found

    def _show_as_torchrun(self, env: dict[str, str], local_rank: int, files: list[Path]) -> None:
        """Link `<log-dir>/<run id>_<random>/attempt_<n>/<local rank>/stdout.log` and so on to our files."""
        log_dir = self._job.passed.get("log_dir")
        if log_dir is None or self._users is not None:
            return
        if self._mirror is None:
            os.makedirs(log_dir, exist_ok=True)
            run_id = env["TORCHELASTIC_RUN_ID"].replace("/", "-")
            self._mirror = Path(tempfile.mkdtemp(prefix=f"{run_id}_", dir=log_dir))
        folder = self._of_attempt(self._mirror) / str(local_rank)
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            _link(folder / path.name, str(path))

    def _show_filtered(self, files: LogsDest) -> None:
        """Link the lines that were filtered, of all local ranks, beside the ranks' folders."""
        if self._mirror is None:
            return
        for stream in ("stdout", "stderr"):
            if self._job.passed.get(f"duplicate_{stream}_filters"):
                path = getattr(files, f"filtered_{stream}", "")  # an older torch has none
                _link(self._of_attempt(self._mirror) / Path(path).name, path)

    def _of_attempt(self, mirror: Path) -> Path:
        return mirror / f"attempt_{self.attempt - self._job.first_attempt}"


def _users_specs(job: AgentJob) -> LogsSpecs | None:
    name = job.passed.get("logs_specs")
    if name is None:
        return None
    from torch.distributed.run import _get_logs_specs_class

    ranks = job.passed.get("local_ranks_filter")
    return _get_logs_specs_class(name)(
        log_dir=job.passed.get("log_dir"),
        redirects=Std.from_str(job.passed.get("redirects") or "0"),
        tee=Std.from_str(job.passed.get("tee") or "0"),
        local_ranks_filter=None if ranks is None else {int(rank) for rank in ranks.split(",")},
    )


def _link(path: Path, target: str) -> None:
    """Let `path` lead to `target`; a link left from an earlier run is replaced."""
    if target:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        path.symlink_to(os.path.abspath(target))
