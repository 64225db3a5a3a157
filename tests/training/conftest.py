from __future__ import annotations

import signal
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from tests.engine.conftest import import_peer


@pytest.fixture(scope="session", autouse=True)
def settle_torch() -> None:
    """Let torch do first what it does once for good: its first optimizer sets TORCHINDUCTOR_CACHE_DIR."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()


@pytest.fixture(scope="session")
def ignite() -> ModuleType:
    """ignite's module `ignite.engine`."""
    return import_peer("ignite.engine")


@pytest.fixture
def sigchld(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo the handler that a DataLoader with workers sets for good."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)
