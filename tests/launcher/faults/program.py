"""A training script in which one rank meets a fault: `program.py NAME RANK`.

A tiny model under DDP over gloo, without distrain. At the third step the named fault strikes at the rank; the other
ranks go on, and meet its consequences in the next all-reduce. One fault strikes before the first step.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import importlib
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

FAULTS: dict[str, Callable[[], object]] = {}
AT_STEP = 3
GROUP_TIMEOUT_S = 60
SHORT_TIMEOUT_S = 3


def fault(function: Callable[[], object]) -> Callable[[], object]:
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


# Exceptions.


@fault
def value_error():
    raise ValueError("the batch is empty")


@fault
def error_inside_torch():
    import torch

    return torch.ones(2, 3) @ torch.ones(2, 3)


@fault
def assertion():
    assert AT_STEP == 0, "steps do not add up"


@fault
def chained_error():
    try:
        return {}["config"]
    except KeyError as error:
        raise RuntimeError("the configuration is incomplete") from error


@fault
def message_of_several_lines():
    raise RuntimeError("first line\nsecond line\nthird line")


@fault
def error_without_a_message():
    raise NotImplementedError


@fault
def error_that_cannot_be_shown():
    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    raise BrokenError


@fault
def recursion():
    def deeper(n):
        return deeper(n + 1) + 1

    return deeper(0)


@fault
def memory_error():
    return bytearray(1 << 60)


@fault
def missing_file():
    return Path("/nowhere/data.bin").read_bytes()


@fault
def missing_module():
    return importlib.import_module("a_module_that_is_not_there")


@fault
def syntax_error_in_a_module():
    folder = tempfile.mkdtemp()
    Path(folder, "broken_settings.py").write_text("rate = = 0.1\n")
    sys.path.insert(0, folder)
    return importlib.import_module("broken_settings")


@fault
def no_cuda():
    import torch

    return torch.ones(1, device="cuda:17")


@fault
def error_in_a_loader_process():
    return next(iter(_loader(_Broken())))


@fault
def killed_loader_process():
    return next(iter(_loader(_Killed())))


@fault
def fails_before_the_first_step():
    raise LookupError("no such model")


# Ends without an exception.


@fault
def exit_3():
    sys.exit(3)


@fault
def exit_with_words():
    sys.exit("no data for this rank")


@fault
def hard_exit_7():
    os._exit(7)


@fault
def leaves_early():
    os._exit(0)


# Signals.


@fault
def segmentation_fault():
    return ctypes.string_at(0)


@fault
def killed():
    _die(signal.SIGKILL)


@fault
def terminated():
    _die(signal.SIGTERM)


@fault
def aborted():
    ctypes.CDLL(None).abort()


@fault
def bus_error():
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        return memory[0]


@fault
def floating_point_signal():
    _die(signal.SIGFPE)


@fault
def illegal_instruction():
    _die(signal.SIGILL)


# Between ranks.


@fault
def does_not_take_part():
    while True:
        time.sleep(0.1)


@fault
def loses_a_connection_of_its_own():
    """It sounds like a peer's end, and is none."""
    raise ConnectionResetError("the link to the storage is gone")


@fault
def two_fail_together():
    raise ValueError("both of us")


@fault
def fails_while_a_thread_goes_on():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    raise ValueError("with a thread")


def _die(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


class _Broken:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise OSError(f"sample {index} cannot be read")


class _Killed(_Broken):
    def __getitem__(self, index):
        _die(signal.SIGKILL)


def _loader(dataset):
    from torch.utils.data import DataLoader

    return DataLoader(dataset, num_workers=1)


def main(name: str, ranks: set[int]) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=dt.timedelta(seconds=GROUP_TIMEOUT_S))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1000):
        at_step = 0 if name == "fails-before-the-first-step" else AT_STEP
        if step == at_step and name == "does-not-take-part":
            # not before: a busy machine takes longer to start than this waits
            dist.distributed_c10d._set_pg_timeout(dt.timedelta(seconds=SHORT_TIMEOUT_S))
        if step == at_step and dist.get_rank() in ranks:
            FAULTS[name]()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], {int(rank) for rank in sys.argv[2].split(",")})
