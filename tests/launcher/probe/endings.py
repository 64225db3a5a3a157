"""The probe's endings: `endings.py KIND,KIND,… FOLDER` ends in one way and leaves its traces in FOLDER/<kind>.

Which of the ways is told by the variables that a launcher sets: its rank, plus the number of restarts before. So
many endings fit into one launch: those that succeed side by side, those that fail one after another.
"""

import atexit
import concurrent.futures
import ctypes
import faulthandler
import logging
import logging.handlers
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
import weakref

ENDINGS = {}
TURN = int(os.environ.get("RANK", "0")) + int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
KIND = sys.argv[1].split(",")[TURN]
TRACES = os.path.join(sys.argv[2], KIND)


def ending(function):
    ENDINGS[function.__name__.replace("_", "-")] = function
    return function


def trace(text):
    with open(TRACES, "a") as file:
        file.write(f"{text}\n")


@ending
def nothing():
    pass


@ending
def output_without_newline():
    sys.stdout.write("last words")
    sys.stderr.write("last complaint")


@ending
def exit_none():
    sys.exit()


@ending
def exit_zero():
    sys.exit(0)


@ending
def exit_seven():
    sys.exit(7)


@ending
def exit_259():
    sys.exit(259)


@ending
def exit_negative():
    sys.exit(-3)


@ending
def exit_huge():
    sys.exit(2**70)


@ending
def exit_text():
    sys.exit("cannot go on: ünïcode")


@ending
def exit_true():
    sys.exit(True)


@ending
def exit_false():
    sys.exit(False)


@ending
def exit_float():
    sys.exit(2.5)


@ending
def exit_tuple():
    sys.exit((1, 2))


@ending
def exit_builtin():
    exit(5)  # noqa: PLR1722


@ending
def exit_while_handling():
    try:
        raise ValueError("first")
    except ValueError:
        sys.exit(9)


@ending
def exit_in_thread():
    thread = threading.Thread(target=sys.exit, args=(8,))
    thread.start()
    thread.join()


@ending
def exit_at_once():
    atexit.register(trace, "never")
    os._exit(4)


@ending
def abort():
    os.abort()


@ending
def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@ending
def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


@ending
def hung_up():
    signal.raise_signal(signal.SIGHUP)


@ending
def interrupted():
    atexit.register(trace, "atexit after KeyboardInterrupt")
    signal.raise_signal(signal.SIGINT)


@ending
def keyboard_interrupt_raised():
    raise KeyboardInterrupt("by hand")


@ending
def segmentation_fault():
    ctypes.string_at(0)


@ending
def segmentation_fault_explained():
    faulthandler.enable()
    ctypes.string_at(0)


@ending
def exception():
    def inner(number):
        return 1 / number

    inner(0)


@ending
def exception_with_cause():
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("could not\ngo on") from error


@ending
def exception_while_handling():
    try:
        {}["missing"]
    except KeyError:
        len(5)


@ending
def exception_of_own_class():
    class Local(Exception):  # noqa: N818
        pass

    error = Local("text", 3)
    if hasattr(error, "add_note"):
        error.add_note("a note")
    raise error


@ending
def exception_group():
    if sys.version_info >= (3, 11):
        raise ExceptionGroup("several", [ValueError(1), TypeError("two")])  # noqa: F821
    raise ValueError("no groups yet")


@ending
def exception_in_import():
    import broken_on_import  # noqa: F401


@ending
def exception_in_compiled_text():
    exec(compile("def f():\n    raise LookupError('in text')\nf()", "<made up>", "exec"), {})


@ending
def syntax_error_in_import():
    import broken_syntax  # noqa: F401


@ending
def recursion():
    def dive():
        dive()

    dive()


@ending
def own_excepthook():
    def hook(kind, error, stack):
        depth = 0
        while stack:
            depth, stack = depth + 1, stack.tb_next
        print("own hook", kind.__name__, error, depth)

    sys.excepthook = hook
    raise ValueError("for the hook")


@ending
def failing_excepthook():
    sys.excepthook = lambda *_: 1 / 0
    raise ValueError("for the hook")


@ending
def exception_in_atexit():
    atexit.register(lambda: 1 / 0)


@ending
def exit_in_atexit():
    atexit.register(lambda: sys.exit(6))


@ending
def atexit_order():
    import torch  # noqa: F401 (it makes a finalizer, so where `weakref` stands in the order is settled before us)

    for number in range(3):
        atexit.register(trace, f"atexit {number}")
    weakref.finalize(ENDINGS["nothing"], trace, "finalizer")


@ending
def atexit_after_exception():
    atexit.register(trace, "atexit")
    raise ValueError("with atexit")


@ending
def atexit_after_exit():
    atexit.register(trace, "atexit")
    sys.exit(3)


@ending
def logging_is_flushed():
    target = logging.FileHandler(TRACES)
    logging.getLogger().addHandler(logging.handlers.MemoryHandler(1000, target=target))
    logging.getLogger().warning("kept in memory until logging.shutdown")


@ending
def exception_in_thread():
    thread = threading.Thread(target=lambda: 1 / 0, name="worker")
    thread.start()
    thread.join()


@ending
def thread_outlives_main():
    def late():
        threading.main_thread().join()
        trace("thread after main")

    atexit.register(trace, "atexit")
    threading.Thread(target=late).start()


@ending
def daemon_thread_does_not():
    threading.Thread(target=threading.Event().wait, daemon=True).start()


@ending
def pool_is_joined():
    over = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(lambda: (over.wait(), trace("task after main")))
    threading._register_atexit(over.set)


class Deleted:
    def __del__(self, trace=trace):
        trace("__del__")


@ending
def object_is_deleted():
    globals()["kept"] = Deleted()


@ending
def object_in_cycle_is_deleted():
    kept = Deleted()
    kept.itself = kept
    globals()["kept"] = kept


@ending
def open_file_is_flushed():
    file = open(TRACES, "w")  # noqa: SIM115
    file.write("in the buffer")
    globals()["kept"] = file


@ending
def stdout_is_closed():
    sys.stdout.close()


@ending
def broken_stdout():
    os.close(1)
    print("into the void")


@ending
def warning_shown():
    warnings.warn("look here", UserWarning, stacklevel=1)
    warnings.warn("hidden unless asked for", ResourceWarning, stacklevel=1)


@ending
def child_process_is_joined():
    multiprocessing.get_context("fork").Process(target=late_child, args=(os.getpid(),)).start()


def late_child(_parent):
    trace("child process")


@ending
def daemon_process_is_ended():
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,), daemon=True).start()


@ending
def forked_child_falls_through():
    if os.fork() == 0:
        atexit.register(trace, "atexit of the child")
        return
    trace(f"child ended {os.waitstatus_to_exitcode(os.wait()[1])}")


@ending
def recorded_by_torch():
    from torch.distributed.elastic.multiprocessing.errors import record

    @record
    def train():
        raise ValueError("recorded")

    train()


if __name__ == "__main__":
    ENDINGS[KIND]()
