"""The place of a process in a scheduler's job, and how the schedulers' variables are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distrain.errors import UsageError

__all__ = ["DEFAULT_PORT", "Placement", "derived_port", "number"]

DEFAULT_PORT = 29500

FIRST_PORT, NUM_PORTS = 20000, 9000
"""Below the default ports of torch, and those that Linux hands out by itself, which begin at 32768."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The place of this process among those that the scheduler started.

    A *node* here is a process that starts ranks: a host, or one of several tasks on a host.

    Args:
        scheduler: `Slurm`, `MPI`, `Kubernetes` or `TPU`.
        detail: What was found, for a reader.
        nnodes: How many such processes there are.
        node_rank: Which one this is, in the scheduler's order.
        head: The address of the first, or None where it is not known.
        port: A port there.
        run_id: An id that no other run has or will have, the same for all processes; "" where there is none.
        is_repeated: Whether that id names this very start of distrain, so that the next one with the same id goes on
            with the run; a job's id alone is that of all that its script starts.
        incarnation: How often the scheduler has started the run again, which has the same id then.
        local_task: Where the scheduler starts a process for each rank: this one's number on its host, and how many
            there are on it.
        hosts: The host of each of these processes; empty where the variables do not tell.
        local_tasks: The `local_task` of each of them; empty where the variables do not tell.
        only_here: How many hosts the allocation has when nothing was started on the others; else 0.
    """

    scheduler: str
    detail: str
    nnodes: int
    node_rank: int
    head: str | None
    port: int = DEFAULT_PORT
    run_id: str = ""
    is_repeated: bool = False
    incarnation: int = 0
    local_task: tuple[int, int] | None = None
    hosts: tuple[str, ...] = ()
    local_tasks: tuple[tuple[int, int], ...] = ()
    only_here: int = 0

    @property
    def num_hosts(self) -> int | None:
        """How many hosts these processes are on; None where the variables do not tell."""
        if self.local_task is None:
            return self.nnodes
        if self.local_task[1] == self.nnodes:
            return 1
        return len(set(self.hosts)) or None


def derived_port(job: int) -> int:
    """Return the port of a job, the same on every node; two that share a host seldom have the same.

    Args:
        job: Its number.
    """
    return FIRST_PORT + job % NUM_PORTS


def number(environ: Mapping[str, str], *names: str, default: int | None = None) -> int:
    """Return the whole number in the first of some variables that is set.

    Args:
        environ: The environment.
        names: The variables.
        default: What it is when none is set; without it that is an error.

    Raises:
        UsageError: It is no whole number, or none is set.
    """
    for name in names:
        text = environ.get(name)
        if text:
            if not (text.isascii() and text.isdigit()):
                raise UsageError(f"{name} is {text!r}; the scheduler sets a whole number there.")
            return int(text)
    if default is None:
        raise UsageError(f"{names[0]} is not set, and the scheduler's other variables are.")
    return default
