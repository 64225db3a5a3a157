"""What is different of torch, and of pdb, in a rank that Python runs, whether they are there already or come later."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from distrain.launcher.after_import import after_import
from distrain.supervision import heartbeat

__all__ = ["amend_torch"]

_C10D = "torch.distributed.distributed_c10d"

_GLOO_FINISHES_S = 0.05


def amend_torch() -> None:
    """Have process groups end without a hang, and neither `torch.save` nor pdb's prompt be taken for one."""
    after_import(_C10D, "destroy_process_group", _let_gloo_finish)
    after_import("torch", "save", _let_saving_take_long)
    after_import("pdb", "Pdb", _let_debugging_take_long)


def _let_gloo_finish() -> None:
    """Have gloo's threads get the interpreter once more before a program destroys its process group.

    A DDP model that is freed after its group takes the group along, holding the interpreter's lock while it joins
    gloo's threads; one of them may wait for that lock to free the last collective's tensors, and the rank hangs for
    good (pytorch#56297). The time for that is a few milliseconds after the collective. It happens under torchrun too,
    but a warm process, which has all its modules in memory already, is quicker from the one to the other.
    """
    c10d = sys.modules[_C10D]
    destroy = c10d.destroy_process_group

    @functools.wraps(destroy)
    def destroy_process_group(*args: Any, **kwargs: Any) -> None:
        time.sleep(_GLOO_FINISHES_S)
        destroy(*args, **kwargs)

    for module in (c10d, sys.modules["torch.distributed"]):
        vars(module)["destroy_process_group"] = destroy_process_group


def _let_saving_take_long() -> None:
    """Have `torch.save` count as a checkpoint, whose time is no hang, also in a loop that is not distrain's.

    A thread that saves beside the training leaves that watched.
    """
    serialization = sys.modules["torch.serialization"]
    save = _in_a_pause(serialization.save)
    for module in (serialization, sys.modules["torch"]):
        vars(module)["save"] = save


def _let_debugging_take_long() -> None:
    """Have the time at pdb's prompt, and at those of debuggers made from pdb, be no hang: somebody thinks."""
    debugger = sys.modules["pdb"].Pdb
    debugger.interaction = _in_a_pause(debugger.interaction)


def _in_a_pause(original: Callable[..., None]) -> Callable[..., None]:
    """Return a function that does the same, in a pause of the heartbeat where it is the main thread that calls it."""

    @functools.wraps(original)
    def paused(*args: Any, **kwargs: Any) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        with heartbeat.paused() if is_main else contextlib.nullcontext():
            original(*args, **kwargs)

    return paused
