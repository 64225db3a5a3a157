"""Rank and world: joining the other workers, talking to them, and leaving them in good order."""

from distrain.runtime.collectives import copy_from_main, from_main, gather_on_main, rank_and_size, sum_on_main
from distrain.runtime.environment import WorkerEnvironment, read_environment
from distrain.runtime.seeding import seed_everything
from distrain.runtime.world import World, current_world, init

__all__ = [
    "WorkerEnvironment",
    "World",
    "copy_from_main",
    "current_world",
    "from_main",
    "gather_on_main",
    "init",
    "rank_and_size",
    "read_environment",
    "seed_everything",
    "sum_on_main",
]
