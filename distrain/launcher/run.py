"""From a plan to a run: what has to be there is looked for, the run directory is opened, the supervisor begins."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distrain.errors import UsageError
from distrain.launcher import precheck
from distrain.launcher.moved import moved
from distrain.launcher.node_run_dir import named_run_dir, open_run_dir
from distrain.launcher.shared_memory import free_and_size, shortage
from distrain.launcher.smoke import EXIT_FAILED
from distrain.launcher.supervisor import Supervisor
from distrain.plan.plan import Plan
from distrain.supervision.output import say

__all__ = ["run"]


def run(plan: Plan, *, environ: Mapping[str, str]) -> int:
    """Carry out a plan in this process, which is the supervisor from then on.

    Args:
        plan: What to launch.
        environ: The environment to launch it with.

    Returns:
        The exit code: 0 all workers ended well · N the root-cause worker's own · 128+S it died of signal S ·
        124 it hung · 130 interrupted · 75 preempted with the state saved · 1 the launcher itself failed.

    Raises:
        UsageError: What the device needs is not installed.
        RunDirError: The run directory cannot be used.
    """
    if plan.device == "xla" and importlib.util.find_spec("torch_xla") is None:
        raise UsageError(
            f"device xla: torch_xla is not installed for {sys.executable}; pip install 'distrain[xla]' brings it with "
            "the torch that fits it."
        )
    if plan.smoke:
        return _run_smoke_test(plan, environ)
    return _run(plan, environ)


def _run_smoke_test(plan: Plan, environ: Mapping[str, str]) -> int:
    """Carry out a smoke test, in a run directory that is kept only for somebody to look why it failed."""
    folder = Path(tempfile.mkdtemp(prefix=f"distrain-smoke-{plan.name}-"))
    code = None
    try:
        code = _run(replace(plan, run_dir=folder), environ)
    finally:
        if code != EXIT_FAILED:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def _run(plan: Plan, environ: Mapping[str, str]) -> int:
    warnings: list[str] = []
    shared_memory = free_and_size()
    if shared_memory is not None and (short := shortage(*shared_memory, plan.nproc)):
        warnings.append(short)
    door = None
    if plan.meeting is not None:
        named = named_run_dir(plan)
        elsewhere = moved(plan.meeting, named) if named else None
        if elsewhere is None:
            patience_s = precheck.name_patience_s(plan.meeting, environ)
            door = precheck.open_door(plan.meeting, warnings.append, say=_say, patience_s=patience_s)
        else:
            warnings.append(f"the nodes do not meet at {plan.meeting.endpoint} any more, but at {elsewhere.endpoint}")
            plan = replace(plan, meeting=elsewhere)
    record, shared = open_run_dir(plan, is_head=door is not None)
    try:
        return Supervisor(plan, record, environ, door=door, shared_run_dir=shared, warnings=warnings).run()
    finally:
        record.close()


def _say(text: str) -> None:
    """Tell the user something before there is a supervisor."""
    say(f"distrain: {text}")
