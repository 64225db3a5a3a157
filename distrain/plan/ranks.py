"""How many ranks this node has, and on what they compute."""

from __future__ import annotations

from distrain.errors import UsageError, did_you_mean
from distrain.plan import detect
from distrain.plan.draft import Draft
from distrain.plan.sources import Given, as_number

__all__ = ["resolve_ranks"]

DEVICES = ("auto", "cpu", "cuda", "xla")


def resolve_ranks(draft: Draft) -> tuple[str, int]:
    """Return the device and the number of ranks, and note them; `auto` and 0 where only the node can tell.

    More ranks than GPUs is a mistake where the GPUs were asked for by name. Where they only happen to be there it is
    none: scripts that use gloo start any number of ranks under torchrun.

    Args:
        draft: The plan in the making.

    Raises:
        UsageError: A value is not valid, or the machine does not have what was asked for.
    """
    gpus = draft.gpus
    device = _device(draft, gpus)
    spmd = draft.found.get("xla_spmd")
    if spmd is not None:
        if device not in ("xla", "auto"):
            why = f"{device} ({draft.settings['device'].detail})"
            raise UsageError(f"{spmd.where} is for device xla, and the device is {why}. Add --device xla.")
        draft.given("xla_spmd", value=True)
    nproc = _nproc(draft, device, gpus)
    if device == "cuda" and gpus is not None and nproc > gpus:
        have = f"{nproc} ranks for {gpus} visible GPU{'s' * (gpus != 1)}"
        if draft.settings["device"].origin != "detected":
            if gpus or "dry_run" not in draft.found:
                raise UsageError(
                    f"{draft.found['nproc'].where}: got {have}; every rank needs a GPU of its own. Use --nproc {gpus} "
                    "or fewer, or --device cpu."
                )
        else:
            draft.warnings.append(f"{have}: ranks without a GPU of their own work on the CPU only")
    return device, nproc


def _device(draft: Draft, gpus: int | None) -> str:
    said = draft.found.get("device")
    if said is not None and said.text not in DEVICES:
        raise UsageError(
            f"{said.where}: got {said.text!r}; valid are {', '.join(DEVICES)}.{did_you_mean(said.text, DEVICES)}"
        )
    if said is None or said.text == "auto":
        if gpus is None:
            draft.note("device", "auto", "default", "what the node has")
            return "auto"
        tpu = "" if gpus else detect.tpu(draft.environ)
        device = "cuda" if gpus else "xla" if tpu else "cpu"
        draft.note("device", device, "detected", tpu or f"{gpus} visible GPU{'s' * (gpus != 1)}")
        return device
    if said.text == "cuda" and gpus == 0:
        text = (
            f"{said.where} cuda: no NVIDIA GPU is visible here (no /dev/nvidia0, or CUDA_VISIBLE_DEVICES hides it). "
            "Use --device cpu, or give the container its GPUs."
        )
        if "dry_run" not in draft.found:
            raise UsageError(text)
        draft.warnings.append(f"a launch on this machine is refused: {text}")  # a plan for another one can be shown
    draft.given("device", said.text)
    return said.text


def _nproc(draft: Draft, device: str, gpus: int | None) -> int:
    said, placement = draft.found.get("nproc"), draft.placement
    if placement is not None and placement.local_task is not None:
        if said is not None and said.text != "1":
            raise UsageError(
                f"{said.where}: got {said.text!r}, and {placement.scheduler} starts a process for each rank "
                f"already ({placement.detail}). Leave it out, or start one process a node."
            )
        draft.note("nproc", 1, "detected", placement.detail)
        return 1
    if draft.is_ahead or gpus is None:
        return _nproc_ahead(draft, said)
    if device == "xla":
        return _nproc_of_xla(draft, said)
    if said is None:
        count = max(1, gpus) if device == "cuda" else 1
        why = f"one per visible GPU ({gpus})" if device == "cuda" else "one process where no accelerator is used"
        draft.note("nproc", count, "detected", why)
        return count
    got = said.text
    if got == "cpu" or (got == "auto" and device != "cuda"):
        count = detect.visible_cpus()
        draft.given("nproc", count, f"{said.where} {got}: one per visible CPU")
    elif got in ("auto", "gpu"):
        if not gpus:
            raise UsageError(f"{said.where} {got}: no NVIDIA GPU is visible here. Give --nproc a number, or cpu.")
        count = gpus
        draft.given("nproc", count, f"{said.where} {got}: one per visible GPU")
    else:
        count = _number(said)
        draft.given("nproc", count)
    return count


def _nproc_ahead(draft: Draft, said: Given | None) -> int:
    """Return the number of ranks where it does not depend on what the node has, else 0."""
    count = 0 if said is None or said.text in ("auto", "cpu", "gpu") else _number(said)
    draft.note("nproc", count, "default" if said is None else said.origin, "what the node has" if not count else "")
    return count


def _number(said: Given) -> int:
    number = as_number(said.text)
    if number is None or number < 1:
        raise UsageError(
            f"{said.where}: got {said.text!r}; give a number of processes of at least 1, or auto, cpu or gpu."
        )
    return number


def _nproc_of_xla(draft: Draft, said: Given | None) -> int:
    """torch_xla starts the processes, and knows two ways: one for each chip, or one."""
    spmd = draft.found.get("xla_spmd")
    if spmd is not None:
        if said is not None and said.text not in ("1", "auto"):
            raise UsageError(
                f"{said.where}: got {said.text!r}; with {spmd.where} one process computes on all devices. Leave it out."
            )
        draft.note("nproc", 1, spmd.origin if said is None else said.origin, f"{spmd.where}: one for all XLA devices")
        return 1
    chips, seen = detect.visible_chips(draft.environ)
    if said is None or said.text == "auto" or as_number(said.text) == chips:
        origin = "detected" if said is None else said.origin
        draft.note("nproc", chips, origin, f"one per XLA device ({seen})")
        return chips
    if as_number(said.text) != 1:
        valid = "auto and 1" if chips == 1 else f"auto, {chips} and 1"
        raise UsageError(
            f"{said.where}: got {said.text!r} for device xla, where torch_xla starts one process for each of the "
            f"devices ({chips} here: {seen}) or a single one; valid are {valid}."
        )
    draft.given("nproc", 1)
    return 1
