"""The fixtures of ranks; the plugin adds them, since another plugin may have some of the same names."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distrain.testing.plugin import RANK

if TYPE_CHECKING:
    from distrain.runtime.world import World
    from distrain.testing.faults import Faults

__all__ = ["faults", "run_dir", "world"]


def _rank(request: pytest.FixtureRequest) -> Any:
    rank = request.config.stash.get(RANK, None)
    if rank is None:
        pytest.fail(
            f"The fixture {request.fixturename!r} belongs to ranks: mark the test with "
            "@pytest.mark.distributed(nproc=2).",
            pytrace=False,
        )
    return rank


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Generator[World, None, None]:
    """The world of this rank, as `distrain.init()` returns it; it is closed after the test."""
    rank = _rank(request)
    from distrain.runtime import init

    opened = init(device="cpu")
    yield opened
    if rank.all_passed:
        opened.close()
    # Otherwise a peer may be gone: nobody is waited for, and the process group ends with the process.


@pytest.fixture
def run_dir(request: pytest.FixtureRequest) -> Path:
    """The run directory, the same for all ranks: what `world.run_dir` is, and where checkpoints go by default."""
    path: Path = _rank(request).run_dir
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    """Faults by rank and step: `faults.inject("kill", rank=1, step=3)`."""
    found: Faults = _rank(request).faults
    return found
