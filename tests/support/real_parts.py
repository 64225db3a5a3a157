"""Tests against real parts (Slurm, Docker, torch_xla, namespaces, a GPU, frameworks): skipped at home, never in CI.

On a developer's machine a missing part skips its tests. Where `CI=true` is set, the suite was asked for by name and
everything it needs was installed, so a test that would skip has not tested: it fails.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["MARKERS", "in_ci", "missing"]

MARKERS = ("slurm", "docker", "xla", "netns", "gpu", "frameworks")


def in_ci() -> bool:
    """Whether this run's job is to prove, not to help."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def missing(part: str) -> NoReturn:
    """End the calling test because `part` is not here: a failure in CI, a skip elsewhere.

    Args:
        part: What is missing and how to get it, as in `slurmctld is not on PATH: apt-get install slurm-wlm`.
    """
    if in_ci():
        pytest.fail(f"CI must test the real part, and it is not here: {part}", pytrace=False)
    pytest.skip(part)
