"""What a node says of those that it waits for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distrain.launcher.meeting_place import MeetingPlace
from distrain.plan.meeting import Meeting


@pytest.mark.parametrize(
    ("host", "leads_here"),
    [("localhost", True), ("127.0.0.1", True), ("0.0.0.0", True), ("::", True), ("h0", False), ("10.0.0.1", False)],
)
def test_who_waits_where_no_other_host_comes_says_so(host, leads_here):
    place = MeetingPlace.__new__(MeetingPlace)  # without a store
    place._meeting = Meeting(
        min_nodes=2, max_nodes=2, node_rank=None, backend="c10d", host=host, port=7, run_id="none", conf={}
    )
    place.watch = SimpleNamespace()
    hint = f". {host} leads each host to itself; for several hosts give --rdzv-endpoint HOST:7"
    assert place.awaited().endswith(hint) == leads_here
    assert place.too_few().endswith(hint) == leads_here
