"""What holds for the hosts of a TPU slice, beside other nodes: their number is fixed, and torch_xla knows them all."""

from __future__ import annotations

from distrain.errors import UsageError
from distrain.plan import detect
from distrain.plan.draft import Draft
from distrain.plan.meeting import Meeting

__all__ = ["check_slice"]


def check_slice(draft: Draft, meeting: Meeting, nproc: int) -> None:
    """Check a plan for several hosts with XLA devices.

    Args:
        draft: The plan in the making.
        meeting: How the hosts meet.
        nproc: The number of ranks on each.

    Raises:
        UsageError: They cannot work together so.
    """
    found = draft.found
    hosts = f"{meeting.max_nodes} hosts ({draft.settings['nnodes'].detail})"
    if meeting.min_nodes != meeting.max_nodes:
        raise UsageError(
            f"{found['nnodes'].where}: got {found['nnodes'].text!r} for device xla, where a slice has all its hosts or "
            f"none. Give --nnodes {meeting.max_nodes}."
        )
    if "xla_spmd" in found:
        raise UsageError(
            f"{found['xla_spmd'].where}: one process for all devices runs on one host so far, and there are {hosts}. "
            "Leave it out: each chip gets a process then."
        )
    if meeting.backend != "c10d" or meeting.conf.get("store_type", "tcp") != "tcp":
        name = "rdzv_backend" if meeting.backend != "c10d" else "rdzv_conf"
        raise UsageError(
            f"{found[name].where}: got {found[name].text!r} for device xla on {hosts}, which meet by c10d over TCP "
            "only. Leave it out."
        )
    if draft.is_ahead:
        return  # only the host can tell its chips
    chips, seen = detect.visible_chips(draft.environ)
    if nproc != chips:
        said = f"{found['nproc'].where}: got {found['nproc'].text!r}" if "nproc" in found else f"got {nproc} rank here"
        cure = "Leave it out." if "nproc" in found else f"Have {_scheduler(draft)} start one process a host."
        raise UsageError(
            f"{said} for device xla on {hosts}, where torch_xla starts one process for each device ({chips} here: "
            f"{seen}). {cure}"
        )


def _scheduler(draft: Draft) -> str:
    return draft.placement.scheduler if draft.placement is not None else "the scheduler"
