"""The single-node rendezvous: a store of its own for each attempt, on the loopback interface."""

from __future__ import annotations

import gc
import shutil
from datetime import timedelta

import pytest
import torch.distributed as dist

from distrain.launcher.rendezvous import SingleNodeRendezvous
from tests.support.processes import run
from tests.support.real_parts import missing


@pytest.fixture
def handler():
    handler = SingleNodeRendezvous("run", 5)
    yield handler
    handler.shutdown()
    gc.collect()


def client(info) -> dist.TCPStore:
    address = info.bootstrap_store_info
    return dist.TCPStore(address.master_addr, address.master_port, is_master=False, timeout=timedelta(seconds=5))


def test_an_attempt_does_not_see_the_keys_of_the_one_before(handler):
    first = handler.next_rendezvous()
    client(first).set("key", "of the first attempt")
    assert client(first).check(["key"])
    second = handler.next_rendezvous()
    assert not client(second).check(["key"])


def test_it_listens_on_the_loopback_interface_only(handler):
    info = handler.next_rendezvous()
    port = info.bootstrap_store_info.master_port
    if shutil.which("ss") is None:
        missing("ss is not here, which shows who listens: apt-get install iproute2")
    listening = [line.split()[3] for line in run(["ss", "-ltn"]).check().stdout.splitlines() if f":{port} " in line]
    assert listening == [f"127.0.0.1:{port}"]
