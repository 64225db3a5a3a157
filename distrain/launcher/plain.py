"""A worker of a plain interpreter: a few lines run ahead of the program, so that its hangs and failures are told too.

A worker that may not be forked, with `--no-fork-server` say, begins as `python -u -c PROGRAM`. It imports no torch
that the program does not import: what needs torch waits until it is there.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import distrain
from distrain.launcher.protocol import WorkerJob

__all__ = ["command", "main"]

PROGRAM = """\
import sys
if sys.path[:1] == [""]: del sys.path[0]
sys.path.insert(0, sys.argv[1])
from distrain.launcher.plain import main
del sys.path[0]
main(sys.argv[2], sys.argv[3:])
"""


def command(job: WorkerJob) -> list[str]:
    """Return the command line that a worker begins with, in a process that has its environment already.

    A program of another interpreter's, or of none, begins as it is.

    Args:
        job: The rank to start.
    """
    if job.kind == "command" or job.command[0] != sys.executable:
        return job.command
    head = job.command[: len(job.command) - len(job.args)]
    told = {**asdict(job), "env": {}, "args": [], "command": head}
    root = str(Path(distrain.__file__).parent.parent)
    return [sys.executable, "-u", "-c", PROGRAM, root, json.dumps(told), *job.args]


def main(told: str, args: list[str]) -> None:
    """Become the worker and run its program.

    Args:
        told: Its job, without what the process has anyway.
        args: The program's arguments.
    """
    from distrain.launcher import bootstrap

    fields = json.loads(told)
    fields.update(env=dict(os.environ), args=args, command=[*fields["command"], *args])
    job = WorkerJob(**fields)
    bootstrap.become_plain(job)
    bootstrap.run(job)
