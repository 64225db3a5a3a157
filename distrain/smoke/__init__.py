"""The worker half of `distrain launch --smoke`: it looks on while a script trains for a few steps, and writes down
what it sees. The launcher compares the ranks.

    install()        in a fresh worker, ahead of the script
      findings       what this rank has seen, as a file
      prints         short names of what tensors, batches and data sets hold
      states         what else holds state, which a checkpoint may forget
      training       losses, gradients and weights, whatever loop they are in
      loaders        which samples torch's DataLoader gives to this rank
      engines        our engines run for a few iterations; a checkpoint is taken in their middle

A trainer with a `Checkpointer` is run twice, in two starts of all ranks: the first goes through, the second begins at
the checkpoint. Each hook is put in from outside and in this process alone, so that a run that is no smoke test pays
nothing for it.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from distrain.runtime.environment import num_restarts, read_environment, smoke_folder

__all__ = ["install"]


def install(environ: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Look on at what this process does from now on.

    Args:
        environ: The worker's environment; that of this process by default.

    Returns:
        What writes down the last of it; the process's exit does it too.
    """
    from distrain.smoke import engines, loaders, training
    from distrain.smoke.findings import Findings

    place = read_environment(environ)
    folder = smoke_folder(environ)
    assert folder is not None, "no smoke test: the launcher has set no folder for its findings"
    findings = Findings(
        folder=Path(folder), rank=place.rank, world_size=place.world_size, start=int(num_restarts(environ))
    )
    data = loaders.follow(findings)
    steps = training.follow(findings, data)
    engines.follow(findings, data, steps)
    findings.write()
    return atexit.register(functools.partial(steps.conclude, "exit"))
