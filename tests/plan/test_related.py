"""Options that speak of the same thing: the stronger source counts, and what is ignored is said."""

from __future__ import annotations

import pytest

from distrain.plan.related import without_overruled
from distrain.plan.sources import Given


def given(**said):
    """Return what was given: `nnodes="flag 2"`."""
    found = {}
    for name, text in said.items():
        origin, _, value = text.partition(" ")
        where = {"flag": f"--{name}", "environment": f"PET_{name}", "profile": f"p.toml: {name}"}[origin]
        found[name] = Given(text=value, origin=origin, where=where)
    return found


@pytest.mark.parametrize(
    ("found", "left", "warnings"),
    [
        (
            given(standalone="profile 1", nnodes="flag 2"),
            {"nnodes"},
            ["p.toml: standalone is ignored: --nnodes (2) is stronger"],
        ),
        (
            given(standalone="environment 1", rdzv_endpoint="flag h:1", nnodes="profile 2"),
            {"rdzv_endpoint", "nnodes"},
            ["PET_standalone is ignored: --rdzv_endpoint (h:1) is stronger"],
        ),
        (
            given(standalone="flag 1", nnodes="profile 2", master_addr="environment h"),
            {"standalone"},
            [
                "p.toml: nnodes (2) is ignored: --standalone means this node alone",
                "PET_master_addr (h) is ignored: --standalone means this node alone",
            ],
        ),
        (
            given(standalone="flag 1", nnodes="flag 2"),
            {"standalone"},
            ["--nnodes (2) is ignored: --standalone means this node alone"],
        ),
        (given(standalone="profile 1", nnodes="flag 1:1", rdzv_endpoint="flag localhost:0"), None, []),
        (given(nnodes="flag 2"), None, []),
        (
            given(log_ranks="profile 0", local_ranks_filter="flag 1"),
            {"local_ranks_filter"},
            ["p.toml: log_ranks (0) is ignored: --local_ranks_filter is stronger"],
        ),
        (given(log_ranks="profile all", local_ranks_filter="flag 1"), {"local_ranks_filter"}, []),
        (given(log_ranks="flag 0", local_ranks_filter="flag 1"), None, []),
    ],
)
def test_what_is_left(found, left, warnings):
    assert without_overruled(found) == ({name: found[name] for name in left or found}, warnings)
