"""Look at everything that a program can see of its own process, and say it in JSON.

The same program runs under two launchers; the test compares what they saw, key by key. A section that raises is
recorded with its error, so that a launcher under which something does not work shows a difference too.

Standard library only, up to the sections that name torch: what is imported here would hide what was there before.
"""

import sys

EARLY_MODULES = sorted(sys.modules)

import atexit
import gc
import json
import os
import signal
import threading

EARLY_THREADS = len(os.listdir("/proc/self/task"))
EARLY_GC = {"enabled": gc.isenabled(), "threshold": gc.get_threshold(), "debug": gc.get_debug()}
EARLY_EXCEPTION = repr(sys.exc_info())

SECTIONS = {}


def section(function):
    SECTIONS[function.__name__] = function
    return function


def describe(value):
    """A class or function by its full name, an object by its type, plain data as it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


@section
def main_module(main):
    module = sys.modules["__main__"]
    spec = main["__spec__"]
    loader = main["__loader__"]
    return {
        "names": main["INITIAL_NAMES"],
        "is in sys.modules": vars(module) is main,
        "__name__": main["__name__"],
        "__doc__": main["__doc__"],
        "__package__": main["__package__"],
        "__file__": main.get("__file__", "absent"),
        "__cached__": main.get("__cached__", "absent"),
        "__builtins__": describe(main["__builtins__"]),
        "__builtins__ is builtins": main["__builtins__"] is sys.modules["builtins"],
        "__annotations__": repr(main.get("__annotations__", "absent")),
        "loader": describe(loader),
        "loader name": getattr(loader, "name", "absent"),
        "loader path": getattr(loader, "path", "absent"),
        "spec": None
        if spec is None
        else {
            "name": spec.name,
            "origin": spec.origin,
            "parent": spec.parent,
            "loader": describe(spec.loader),
            "cached": spec.cached,
            "submodules": spec.submodule_search_locations,
        },
        "module type": describe(type(module)),
        "module repr": repr(module),
        "__mp_main__ is __main__": sys.modules.get("__mp_main__", module) is module,
        "frames below": "f_back" if main["HAS_CALLER"] else "none",
    }


@section
def interpreter(main):
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "path": sys.path,
        "flags": {name: getattr(sys.flags, name) for name in dir(sys.flags) if is_flag(name)},
        "executable": sys.executable,
        "prefix": [sys.prefix, sys.base_prefix, sys.exec_prefix],
        "warnoptions": sys.warnoptions,
        "xoptions": sys._xoptions,
        "dont_write_bytecode": sys.dont_write_bytecode,
        "pycache_prefix": sys.pycache_prefix,
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "int max digits": getattr(sys, "get_int_max_str_digits", int)(),
        "dlopen flags": sys.getdlopenflags(),
        "encoding": [sys.getdefaultencoding(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()],
        "hooks": {
            name: getattr(sys, name) is getattr(sys, f"__{name}__")
            for name in ("excepthook", "displayhook", "unraisablehook", "breakpointhook")
        },
        "trace": [sys.gettrace() is None, sys.getprofile() is None],
        "exception being handled": EARLY_EXCEPTION,
        "leftovers": [name for name in ("ps1", "ps2", "tracebacklimit", "last_type", "last_exc") if hasattr(sys, name)],
        "meta_path": [describe(finder) for finder in sys.meta_path],
        "path_hooks": [describe(hook) for hook in sys.path_hooks],
        "site": ["exit" in vars(sys.modules["builtins"]), sys.modules["site"].ENABLE_USER_SITE],
        "builtins": sorted(vars(sys.modules["builtins"])),
    }


def is_flag(name):
    return not name.startswith(("_", "n_")) and name not in {"count", "index"}


@section
def streams(main):
    found = {}
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        found[name] = {
            "is the original": stream is getattr(sys, f"__{name}__"),
            "type": describe(type(stream)),
            "buffer": describe(type(stream.buffer)),
            "encoding": stream.encoding,
            "errors": stream.errors,
            "newlines": repr(stream.newlines),
            "line_buffering": stream.line_buffering,
            "write_through": stream.write_through,
            "name": stream.name,
            "mode": stream.mode,
            "fileno": stream.fileno(),
            "isatty": stream.isatty(),
            "closed": stream.closed,
        }
    return found


@section
def open_files(main):
    import fcntl

    found = {}
    for fd in sorted(int(entry) for entry in os.listdir("/proc/self/fd")):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target == f"/proc/{os.getpid()}/fd":
            continue
        kind = target.partition(":[")[0] if ":[" in target else "file of the run" if ".log" in target else target
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK)
        found[str(fd)] = {"target": kind, "access": access, "inheritable": os.get_inheritable(fd)}
    return found


@section
def process(main):
    import ctypes
    import resource

    libc = ctypes.CDLL(None)
    number = ctypes.c_int()
    flags = {}
    for name, option in {"parent death signal": 2, "subreaper": 37}.items():
        libc.prctl(option, ctypes.byref(number), 0, 0, 0)
        flags[name] = number.value
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").partition(":\t")[::2] for line in file)
    umask = os.umask(0o22)
    os.umask(umask)
    parent = os.getppid()
    os.kill(parent, 0)
    return {
        "cwd": os.getcwd(),
        "umask": umask,
        "niceness": os.nice(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "scheduler": os.sched_getscheduler(0),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT_" in name},
        "leads its session": os.getsid(0) == os.getpid(),
        "leads its group": os.getpgrp() == os.getpid(),
        "in its parent's session": os.getsid(0) == os.getsid(parent),
        "parent is not init": parent > 1,
        "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
        "prctl": {**flags, "dumpable": libc.prctl(3, 0, 0, 0, 0), "timer slack": libc.prctl(30, 0, 0, 0, 0)},
        "status": {
            key: status.get(key)
            for key in ("Umask", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd", "CapAmb", "THP_enabled", "TracerPid")
        },
        "threads at start": EARLY_THREADS,
        "oom_score_adj": read("/proc/self/oom_score_adj"),
        "cgroup": read("/proc/self/cgroup"),
        "executable": os.readlink("/proc/self/exe"),
        "command line": " ".join(read("/proc/self/cmdline").split("\0")).strip(),
        "name": read("/proc/self/comm").strip(),
        "controlling terminal": read("/proc/self/stat").rpartition(")")[2].split()[4],
        "interval timers": [signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_PROF)],
        "cpu seconds are its own": sum(os.times()[:2]) < 30,
        "children": os.times()[2:4],
    }


def read(path):
    with open(path, errors="surrogateescape") as file:
        return file.read()


@section
def environment(main):
    return dict(os.environ)


@section
def environment_of_children(main):
    import subprocess

    text = subprocess.run(["env", "-0"], stdout=subprocess.PIPE, check=True, close_fds=True).stdout
    child = dict(line.split(b"=", 1) for line in text.split(b"\0") if line)
    return {"same as os.environ": child == dict(os.environb), "sorted": sorted(key.decode() for key in child)}


@section
def signals(main):
    status = dict(line.partition(":\t")[::2] for line in read("/proc/self/status").splitlines())
    wakeup = signal.set_wakeup_fd(-1)
    return {
        "dispositions": {
            signal.Signals(number).name if number in signal.Signals.__members__.values() else str(number): str(
                describe(signal.getsignal(number))
            )
            for number in sorted(signal.valid_signals())
        },
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "pending": sorted(map(int, signal.sigpending())),
        "kernel": {key: status[key] for key in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")},
        "wakeup fd": wakeup,
    }


@section
def signals_work(main):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 5)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    return {"SIGUSR1": len(seen), "SIGINT": interrupted}


@section
def threads(main):
    current = threading.current_thread()
    return {
        "all": [thread.name for thread in threading.enumerate()],
        "main is current": threading.main_thread() is current,
        "ident": current.ident == threading.get_ident(),
        "native id": current.native_id == os.getpid(),
        "type": describe(type(current)),
        "stack size": threading.stack_size(),
        "hooks": [threading.excepthook is threading.__excepthook__, getattr(threading, "_trace_hook", None)],
        "exit functions": len(threading._threading_atexits),
    }


@section
def modules(main):
    return {"early": EARLY_MODULES}


@section
def collector(main):
    return EARLY_GC


@section
def faults(main):
    import faulthandler

    return {"enabled": faulthandler.is_enabled()}


@section
def distinct(main):
    """Values that must differ from rank to rank and from run to run."""
    import multiprocessing
    import random
    import secrets
    import tempfile
    import uuid

    import numpy as np
    import torch

    with tempfile.NamedTemporaryFile() as file:
        name = os.path.basename(file.name)
    return {
        "pid": os.getpid(),
        "random": random.random(),
        "random state": hash(random.getstate()),
        "numpy": float(np.random.random()),
        "numpy generator": float(np.random.default_rng().random()),
        "torch": float(torch.rand(())),
        "torch seed": torch.initial_seed(),
        "uuid1": str(uuid.uuid1()),
        "uuid4": str(uuid.uuid4()),
        "secrets": secrets.token_hex(8),
        "tempfile": name,
        "mkdtemp name": next(tempfile._get_candidate_names()),
        "authkey": multiprocessing.current_process().authkey.hex(),
        "urandom": os.urandom(8).hex(),
        "hash": hash("the string hash's key"),
    }


@section
def torch_process(main):
    """The process as `import torch` and its usual companions leave it: imported here, or before the program began."""
    import decimal
    import locale
    import logging
    import multiprocessing
    import socket
    import tracemalloc
    import warnings

    import numpy as np
    import torch
    import torch._dynamo
    import torch.distributed
    import torch.nn.parallel
    import torch.optim
    import torch.utils.data

    backends = torch.backends
    return {
        "logging": {
            "root": [logging.getLogger().level, [describe(handler) for handler in logging.getLogger().handlers]],
            "raise": logging.raiseExceptions,
            "disabled": logging.root.manager.disable,
            "class": describe(logging.getLoggerClass()),
            "last resort": describe(logging.lastResort),
            "loggers with handlers": sorted(
                name for name, logger in logging.root.manager.loggerDict.items() if getattr(logger, "handlers", None)
            ),
            "levels": {
                name: logger.level
                for name, logger in sorted(logging.root.manager.loggerDict.items())
                if getattr(logger, "level", 0)
            },
        },
        "warning filters": [repr(each) for each in warnings.filters],
        "showwarning": describe(warnings.showwarning),
        "locale": [locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(False)],
        "decimal": repr(decimal.getcontext()),
        "socket timeout": socket.getdefaulttimeout(),
        "tracemalloc": tracemalloc.is_tracing(),
        "collector": [gc.isenabled(), gc.get_threshold(), [describe(each) for each in gc.callbacks]],
        "exit functions": atexit._ncallbacks(),
        "threads": [thread.name for thread in threading.enumerate()],
        "environment": sorted(os.environ),
        "signals": [str(describe(signal.getsignal(number))) for number in sorted(signal.valid_signals())],
        "numpy": [np.geterr(), np.get_printoptions()["precision"]],
        "multiprocessing": {
            "start method": multiprocessing.get_start_method(allow_none=True),
            "process": repr(multiprocessing.current_process()),
            "parent": repr(multiprocessing.parent_process()),
            "daemon": multiprocessing.current_process().daemon,
            "identity": multiprocessing.current_process()._identity,
            "children": multiprocessing.active_children(),
            "config": sorted(multiprocessing.current_process()._config),
            "main path": getattr(multiprocessing.process, "ORIGINAL_DIR", "absent"),
            "inheriting": getattr(multiprocessing.current_process(), "_inheriting", False),
            "resource tracker": resource_tracker_pid(),
            "fork server": fork_server_pid(),
        },
        "torch": {
            "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
            "dtype": str(torch.get_default_dtype()),
            "device": str(torch.get_default_device()),
            "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
            "autocast": [torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()],
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul": torch.get_float32_matmul_precision(),
            "cudnn": [backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.enabled],
            "cuda": [torch.cuda.is_available(), torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork()],
            "distributed": [torch.distributed.is_available(), torch.distributed.is_initialized()],
            "elastic": torch.distributed.is_torchelastic_launched(),
            "sharing": torch.multiprocessing.get_sharing_strategy(),
            "optimizer hooks": [
                len(sys.modules["torch.optim.optimizer"]._global_optimizer_pre_hooks),
                len(sys.modules["torch.optim.optimizer"]._global_optimizer_post_hooks),
            ],
            "module hooks": [len(torch.nn.modules.module._global_forward_hooks)],
            "parallel": [line.strip() for line in torch.__config__.parallel_info().splitlines()],
            "excepthook": sys.excepthook is sys.__excepthook__,
        },
    }


def resource_tracker_pid():
    module = sys.modules.get("multiprocessing.resource_tracker")
    return module._resource_tracker._pid if module else None


def fork_server_pid():
    module = sys.modules.get("multiprocessing.forkserver")
    return module._forkserver._forkserver_pid if module else None


@section
def pools(main):
    """What each numeric library believes about its threads, in the main thread and in another."""
    import numpy as np
    import torch
    from threadpoolctl import threadpool_info

    def look():
        return {
            "libraries": sorted(
                f"{each['user_api']} {each['internal_api']} {os.path.basename(each['filepath'])}: {each['num_threads']}"
                for each in threadpool_info()
            ),
            "torch": torch.get_num_threads(),
            "mkl": torch.backends.mkl.is_available(),
        }

    found = {"main": look()}
    other = threading.Thread(target=lambda: found.update(another=look()))
    other.start()
    other.join()
    large = torch.rand(512, 512)
    (large @ large).sum()
    found["after torch work"] = len(os.listdir("/proc/self/task"))
    dense = np.ones((512, 512))
    found["numpy result"] = float((dense @ dense)[0, 0])
    found["main after work"] = look()
    return found


@section
def own_classes(main):
    import inspect
    import io
    import pickle
    import typing

    import torch

    thing = main["Thing"](7)
    text = pickle.dumps(thing)
    file = io.BytesIO()
    torch.save({"thing": thing, "net": main["Net"]()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    return {
        "pickle": [b"__main__" in text, pickle.loads(text) == thing],
        "torch.save": [loaded["thing"] == thing, type(loaded["net"]) is main["Net"]],
        "enum": pickle.loads(pickle.dumps(main["Colour"].RED)) is main["Colour"].RED,
        "module": [main["Thing"].__module__, main["Net"].__module__],
        "source": inspect.getsource(main["measure"]),
        "source file": inspect.getsourcefile(main["Thing"]),
        "getmodule": describe(inspect.getmodule(main["measure"])),
        "hints": {key: str(value) for key, value in typing.get_type_hints(main["Thing"]).items()},
        "repr": repr(main["Net"]()),
        "script": str(torch.jit.script(main["Net"]()).graph)[:20] if sys.version_info < (3, 14) else "",
    }


@section
def standard_library_works(main):
    import asyncio
    import concurrent.futures
    import contextvars
    import subprocess
    import time

    async def nap():
        child = await asyncio.create_subprocess_exec("true")
        return await asyncio.gather(asyncio.sleep(0, "slept"), child.wait())

    pid = os.fork()
    if pid == 0:
        os._exit(7)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        squares = list(pool.map(lambda x: x * x, range(4)))
    timer = threading.Timer(0, squares.append, [16])
    timer.start()
    timer.join()
    depth = [0]

    def dive():
        depth[0] += 1
        dive()

    try:
        dive()
    except RecursionError:
        reached = depth[0]
    return {
        "asyncio": asyncio.run(nap()),
        "fork": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
        "subprocess": subprocess.run(
            ["sh", "-c", "echo $RANK; exit 3"], check=False, capture_output=True, text=True
        ).stdout,
        "subprocess python": subprocess.run(
            [sys.executable, "-c", "import sys; print(sys.stdout.write_through, sys.path[0])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout,
        "futures": squares,
        "context": len(contextvars.copy_context()),
        "recursion": reached // 100,
        "clock": time.process_time() < 60,
        "no children left": children_left(),
    }


def children_left():
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return "none"


@section
def distributed_works(main):
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        value = torch.tensor([float(dist.get_rank() + 1)])
        dist.all_reduce(value)
        names = [None] * dist.get_world_size()
        dist.all_gather_object(names, main["Thing"](dist.get_rank()))
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return {"rank": dist.is_initialized(), "sum": float(value), "objects": [str(name) for name in names]}


def collect(main, only=None):
    """Return every section's answer, in the order above.

    Args:
        main: The globals of `__main__`.
        only: The names of the sections to ask; all by default.
    """
    import faulthandler

    faulthandler.dump_traceback_later(60, exit=True)  # a hang tells where
    found = {}
    for name, look in SECTIONS.items():
        if only and name not in only:
            continue
        try:
            found[name] = look(main)
        except BaseException as error:  # noqa: BLE001 (KeyboardInterrupt too: under a launcher that is a finding)
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    faulthandler.cancel_dump_traceback_later()
    return json.loads(json.dumps(found, default=repr))


def write(folder, found):
    path = os.path.join(folder, f"{os.environ.get('RANK', '0')}.json")
    with open(f"{path}.draft", "w") as file:
        json.dump(found, file, indent=1)
    os.replace(f"{path}.draft", path)
