"""What `--smoke` means for the other options: CPU ranks on this node, started twice at most, and nothing is kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from distrain.errors import UsageError
from distrain.plan.program import Program
from distrain.plan.sources import Given, is_stronger

__all__ = ["NPROC", "without_what_a_smoke_test_has_not"]

NPROC = 2

HANG_TIMEOUT_S = 120
"""A few iterations on the CPU; what runs for days may wait longer."""

OF_SEVERAL_NODES = (
    *("nnodes", "node_rank", "rdzv_endpoint", "rdzv_backend", "rdzv_id", "rdzv_conf"),
    *("master_addr", "master_port", "local_addr"),
)
OF_A_RUN_TO_KEEP = ("run_dir", "log_dir", "max_restarts", "retry")


def without_what_a_smoke_test_has_not(
    found: Mapping[str, Given], program: Program, warnings: list[str]
) -> dict[str, Given]:
    """Return what was given, as it counts in a smoke test; what does not count is warned of.

    Args:
        found: What was given, by option, `smoke` among it.
        program: What every rank runs.
        warnings: The lines are added here.

    Raises:
        UsageError: Something was asked for that a smoke test cannot do.
    """
    left, smoke = dict(found), found["smoke"]
    cold = found["no_fork_server"].where if "no_fork_server" in found else ""
    cold = "--no-python" if program.kind == "command" else cold
    cold = "PYTHON_EXEC" if program.interpreter != sys.executable else cold
    if cold:
        raise UsageError(
            f"{smoke.where} looks into the workers, which only those that are forked warm allow, and {cold} starts "
            "plain ones. Leave it out."
        )
    device = found.get("device")
    if device is not None and device.text not in ("cpu", "auto"):
        if not is_stronger(smoke, device):
            raise UsageError(
                f"{device.where}: got {device.text!r}, and {smoke.where} computes on the CPU, which every machine has. "
                "Leave one of them out."
            )
        warnings.append(f"{device.where} ({device.text}) is ignored: {smoke.where} computes on the CPU")
    nproc = found.get("nproc")
    if nproc is None or is_stronger(smoke, nproc):
        left["nproc"] = Given(text=str(NPROC), origin=smoke.origin, where=smoke.where)
        if nproc is not None and nproc.text != left["nproc"].text:
            warnings.append(f"{nproc.where} ({nproc.text}) is ignored: {smoke.where} starts {NPROC} ranks")
    for name in (*OF_SEVERAL_NODES, *OF_A_RUN_TO_KEEP):
        if name in left:
            why = "is on this node alone" if name in OF_SEVERAL_NODES else "keeps nothing and starts at most twice"
            warnings.append(f"{left[name].where} ({left[name].text}) is ignored: {smoke.where} {why}")
            del left[name]
    left.setdefault("hang_timeout", Given(text=str(HANG_TIMEOUT_S), origin=smoke.origin, where=smoke.where))
    left["device"] = Given(text="cpu", origin=smoke.origin, where=smoke.where)
    left["standalone"] = Given(text="1", origin=smoke.origin, where=smoke.where)
    left["max_restarts"] = Given(text="1", origin=smoke.origin, where=smoke.where)
    return left
