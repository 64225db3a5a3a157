"""What the engine's tests share: the peer, ignite's engine, and a clean table of custom events."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest

from distrain.engine import State
from tests.support import real_parts


def import_peer(name: str) -> ModuleType:
    """Import a module of ignite, whose own imports warn of what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return __import__(name, fromlist=["*"])
        except ImportError:
            real_parts.missing(
                "ignite is not installed, so there is no peer to compare with: pip install pytorch-ignite"
            )


@pytest.fixture(scope="session")
def ignite() -> ModuleType:
    """ignite's module `ignite.engine`."""
    return import_peer("ignite.engine")


@pytest.fixture(autouse=True)
def restore_event_attributes() -> Iterator[None]:
    """Custom events are known to all engines of a process: forget those of this test."""
    states = [State] + ([sys.modules["ignite.engine"].State] if "ignite.engine" in sys.modules else [])
    before = [dict(state.event_to_attr) for state in states]
    yield
    for state, mapping in zip(states, before, strict=True):
        state.event_to_attr.clear()
        state.event_to_attr.update(mapping)
