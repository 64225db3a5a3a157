"""What to try after a failure: a table from what was said to a sentence or two."""

from __future__ import annotations

import re
from dataclasses import dataclass

from distrain.supervision.failure import Failure

__all__ = ["hints_for"]

_MOST = 2


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    """Matches the whole kind."""
    text: str
    """Is searched for in the message, the traceback and the last lines of standard error."""
    hint: str
    """May hold what a group of the pattern `text` matched: {name}."""


_DDP = r"(?:RuntimeError|.*Dist\w*Error)"
_SHM = (
    "Shared memory (/dev/shm) is probably full: give the container more (docker run --shm-size=8g, or --ipc=host), or "
    "use fewer DataLoader workers."
)

# All rows that match count, the first two are shown: what is more particular stands first.
_ROWS = (
    # Programs that do not begin.
    _Row(
        r"(?:ModuleNotFound|Import)Error",
        r"No module named '(?P<name>[\w.]+)'",
        "Install the package that has {name} into the environment that `distrain` runs in: `python -m pip "
        "install …` with the python that `distrain launch --dry-run` names. If it is a module of yours, start "
        "from its folder, use -m, or set PYTHONPATH.",
    ),
    _Row(
        r"ImportError",
        r"cannot open shared object file|undefined symbol",
        "A compiled package does not fit the libraries it finds: reinstall it for this torch and this Python, "
        "and look at LD_LIBRARY_PATH.",
    ),
    _Row(
        r"ImportError",
        r"partially initialized module|circular import",
        "Two modules import each other, or a file of yours has the name of a package it needs.",
    ),
    _Row(
        r"(?:Syntax|Indentation|Tab)Error",
        r"",
        "Python cannot read the file at the line shown; nothing of it ran.",
    ),
    _Row(
        r"FileNotFoundError",
        r"No such file or directory: '(?P<name>[^/'][^']*)'",
        "{name} is looked for below the folder you started in, on every node; give an absolute path, or start "
        "elsewhere.",
    ),
    _Row(
        r"(?:Connection(?:Reset|Refused)|BrokenPipe|EOF|FileNotFound)Error",
        r"(?s)torch/utils/data/dataloader\.py.*multiprocessing/resource_sharer\.py",
        "A DataLoader worker died with a batch that was not handed over yet; it was killed, mostly for memory: fewer "
        "workers, a smaller prefetch_factor, no big Python lists in the data set.",
    ),
    _Row(
        r"FileNotFoundError",
        r"",
        "See that the path exists on this host: what rank 0 makes is elsewhere only on a shared disk.",
    ),
    _Row(
        r"SystemExit|exit code 2",
        r"arguments are required: (?:[^\n]*[, ])?(?P<option>--local[-_]rank)",
        "torch.distributed.launch gave the script {option}; here, as under torchrun, each rank finds it in the "
        "environment: int(os.environ['LOCAL_RANK']). Without a change to the script, put {option}='${{local_rank}}' "
        "behind it.",
    ),
    _Row(
        r"SystemExit|exit code 2",
        r"error: (?:unrecognized|the following) arguments",
        "The script refused its own arguments.",
    ),
    # Memory.
    _Row(
        r".*OutOfMemoryError|RuntimeError|.*AcceleratorError",
        r"(?:CUDA|HIP|XPU)(?: error:)? out of memory",
        "Make the batch smaller and accumulate (accumulation steps), use amp, or checkpoint activations. If "
        "much is reserved but not allocated, PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True helps.",
    ),
    _Row(
        r".*OutOfMemoryError|RuntimeError|.*AcceleratorError",
        r"Process \d+ has \d|other processes|CUDA error: out of memory",
        "Another process uses the same GPU (nvidia-smi shows it): two ranks on one device, or one left over "
        "from before?",
    ),
    _Row(
        r"OutOfMemory",
        r"",
        "Give the job more memory, or use less: fewer DataLoader workers and a smaller prefetch_factor, load "
        "with mmap, keep no loss tensors (loss.item()) or big Python lists of objects.",
    ),
    _Row(
        r"MemoryError|RuntimeError",
        r"can't allocate memory|MemoryError",
        "The host has no memory left for this rank.",
    ),
    # Deaths by signal.
    _Row(
        r"SIGKILL",
        r"",
        "Somebody sent SIGKILL: a scheduler (a time or memory limit), an administrator, a memory guard such "
        "as systemd-oomd or earlyoom. `dmesg -T | tail` and the scheduler's log tell.",
    ),
    _Row(
        r"SIGBUS",
        r"",
        _SHM,
    ),
    _Row(
        r"SIGSEGV|SIGILL|SIGFPE",
        r"",
        "Native code crashed below the last Python line shown. Suspect an extension built for another version "
        "of torch, or try `--no-fork-server`: some libraries do not bear to be forked.",
    ),
    _Row(
        r"SIGABRT",
        r"Received data size doesn't match",
        "The ranks called a collective with tensors of different sizes, or different collectives: compare "
        "what each rank calls there. TORCH_DISTRIBUTED_DEBUG=DETAIL names the first difference.",
    ),
    _Row(
        r"SIGABRT",
        r"free\(\)|double free|corrupted|munmap_chunk",
        "The heap was damaged by native code, earlier than here.",
    ),
    _Row(
        r"SIGTERM",
        r"",
        "Somebody asked this process to end: a scheduler's limit or preemption, or `kill`.",
    ),
    _Row(
        r"SIGXCPU|SIGXFSZ",
        r"",
        "A limit of the shell or the scheduler was reached: see `ulimit -a`.",
    ),
    # Disk and permissions.
    _Row(
        r"RuntimeError",
        r"DataLoader worker .*Bus error|out of shared memory|unable to (?:open|allocate) shared memory",
        _SHM,
    ),
    _Row(
        r".*",
        r"(?m)^(?!.*shared memory).*(?:\[Errno 28\]|No space left on device|ENOSPC)",
        "The disk is full, or out of inodes: see `df -h` and `df -i` for the run directory, the checkpoints "
        "and /tmp; keep fewer checkpoints (Checkpointer(keep=…)).",
    ),
    _Row(
        r".*",
        r"\[Errno 122\]|Disk quota exceeded",
        "Your quota is used up: see `quota -s`; keep fewer checkpoints.",
    ),
    _Row(
        r"PermissionError|.*",
        r"\[Errno 13\] Permission denied(?:: '(?P<name>[^']+)')?",
        "This user may not use the file: see `ls -ld` of it and of its folder; in a container, the user id of "
        "who wrote it.",
    ),
    _Row(
        r".*",
        r"\[Errno 24\]|Too many open files",
        "Raise `ulimit -n`, or torch.multiprocessing.set_sharing_strategy('file_system').",
    ),
    _Row(
        r"OSError",
        r"\[Errno 116\]|Stale file handle",
        "The network disk was remounted, or another host replaced the file.",
    ),
    # DataLoader.
    _Row(
        r"RuntimeError",
        r"DataLoader worker .*killed by signal: Killed",
        "A DataLoader worker was killed, mostly for memory: fewer workers, a smaller prefetch_factor, no big "
        "Python lists in the data set.",
    ),
    _Row(
        r"RuntimeError",
        r"DataLoader worker",
        "Run once with num_workers=0: the error then comes with its own traceback, from the data set itself.",
    ),
    _Row(
        r"RuntimeError",
        r"DataLoader timed out",
        "A data set's __getitem__ takes longer than the loader's timeout, or waits for good.",
    ),
    _Row(
        r"RuntimeError",
        r"Cannot re-initialize CUDA in forked subprocess",
        "CUDA was used before a process was forked: use multiprocessing_context='spawn' for the DataLoader, "
        "and no CUDA tensors in the data set.",
    ),
    # DistributedDataParallel and collectives.
    _Row(
        r"RuntimeError",
        r"Expected to have finished reduction in the prior iteration",
        "Some parameters have no part in the loss: use them, freeze them (requires_grad_(False)), or pass "
        "find_unused_parameters=True to DistributedDataParallel (distrain.prepare(…, "
        "ddp_options={{'find_unused_parameters': True}})). TORCH_DISTRIBUTED_DEBUG=DETAIL names them.",
    ),
    _Row(
        r"RuntimeError",
        r"appears not to match (?:sizes|strides) of the same param",
        "The ranks have built different models: see what depends on the rank, on its data, or on the random state.",
    ),
    _Row(
        rf"{_DDP}|SIGABRT|Timeout",
        r"Watchdog caught collective|timed out in blocking wait|"
        r"Timed out waiting \d+ms for|pair closure|did not take part",
        "A rank did not come to the collective: a branch on the rank or on the data, an uneven number of "
        "batches, a slow start or checkpoint. Its stack tells where it was; a longer timeout "
        "(init_process_group(timeout=…)) helps only if it was slow.",
    ),
    _Row(
        r".*Dist\w*Error",
        r"waiting for clients|wait timeout after|timed out .*trying to connect",
        "Not all ranks came to init_process_group in time: see that every node started, with the same number "
        "of ranks and the same address, and that the port is open between them.",
    ),
    _Row(
        r".*",
        r"EADDRINUSE|[Aa]ddress already in use",
        "The port is taken, perhaps by a run left over: `ss -ltnp` shows by whom. Without MASTER_PORT a free "
        "one is chosen.",
    ),
    _Row(
        rf"{_DDP}|SIGABRT",
        r"NCCL error",
        "Run once more with NCCL_DEBUG=INFO; on several nodes NCCL_SOCKET_IFNAME names the network interface to use.",
    ),
    # Devices.
    _Row(
        r".*",
        r"device-side assert",
        "Mostly an index out of range on the device (labels ≥ number of classes, token ids ≥ vocabulary). "
        "CUDA_LAUNCH_BLOCKING=1 gives the right line, and so does the CPU.",
    ),
    _Row(
        r".*",
        r"an illegal memory access",
        "CUDA_LAUNCH_BLOCKING=1 gives the right line; compute-sanitizer the kernel.",
    ),
    _Row(
        r"RuntimeError",
        r"Expected all tensors to be on the same device",
        "Move the batch and the model to world.device.",
    ),
    _Row(
        r"RuntimeError",
        r"invalid device ordinal",
        "There are more ranks than visible devices: compare --nproc with CUDA_VISIBLE_DEVICES and nvidia-smi -L.",
    ),
    # Batches.
    _Row(
        r"ValueError",
        r"Expected more than 1 value per channel when training",
        "Batch norm had a batch of one sample, mostly the rest at an epoch's end, on some ranks alone: leave it out "
        "with drop_last=True, or take another batch_size.",
    ),
    # Checkpoints.
    _Row(
        r".*UnpicklingError",
        r"Weights only load failed",
        "torch.load takes tensors only by default: allow the classes with "
        "torch.serialization.add_safe_globals, or pass weights_only=False for a file you trust.",
    ),
    _Row(
        r"RuntimeError",
        r"Error\(s\) in loading state_dict",
        "The checkpoint is another model's; keys that begin with `module.` were saved from inside a DDP wrapper.",
    ),
    # Programs that end themselves.
    _Row(
        r"RecursionError",
        r"",
        "A function calls itself without end: the frames that repeat are the ones to look at.",
    ),
    _Row(
        r"exit code 137",
        r"",
        "137 is what a shell or a container returns for SIGKILL: mostly a memory limit.",
    ),
)


def hints_for(failure: Failure) -> tuple[str, ...]:
    """Return what to try, two pieces of advice at most.

    Args:
        failure: The root cause.
    """
    texts = (failure.message, failure.traceback, "\n".join(failure.log_tail))
    hints: dict[str, None] = {}
    for row in _ROWS:
        if not re.fullmatch(row.kind, failure.kind):
            continue
        if match := next((found for text in texts if (found := re.search(row.text, text))), None):
            hints[row.hint.format(**match.groupdict())] = None
    return tuple(hints)[:_MOST]
