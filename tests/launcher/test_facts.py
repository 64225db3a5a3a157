"""What nodes know of each other, and what follows from it."""

from __future__ import annotations

from dataclasses import replace

from distrain.launcher.facts import Facts, clock_warning, in_order, misfit, spans, warnings

NODE = Facts(
    token="a",
    host="h0",
    address="10.0.0.1",
    head_address="10.0.0.1",
    node_rank=0,
    nproc=2,
    torch="2.13.0",
    distrain="0.1.0",
    python="3.11.7",
    device="cpu",
    nnodes="2",
    run_id="job",
    profile="",
    max_restarts=0,
    run_dir="/runs/a",
)
OTHER = replace(NODE, token="b", host="h1", node_rank=1)


def test_equal_nodes_fit():
    assert misfit(NODE, OTHER) is None
    assert warnings(NODE, OTHER) == []
    assert misfit(NODE, replace(OTHER, nproc=7)) is None


def test_what_cannot_work_is_said_with_what_each_has():
    assert misfit(NODE, replace(OTHER, torch="2.12.0", device="cuda")) == (
        "torch is 2.13.0 on node 0 (host h0) and 2.12.0 on node 1 (host h1); "
        "the device is cpu on node 0 (host h0) and cuda on node 1 (host h1)"
    )
    assert "--rdzv-id" in misfit(NODE, replace(OTHER, run_id="another"))


def test_what_is_hardly_meant_is_a_warning():
    assert warnings(NODE, replace(OTHER, profile="gpu-8")) == [
        "the profile is none on node 0 (host h0) and gpu-8 on node 1 (host h1)"
    ]


def test_profiles_of_one_name_that_set_different_things_are_named_key_by_key():
    says = {"nproc": "1", "max_restarts": "2"}
    one = replace(NODE, profile="gpu-8", profile_says=says)
    other = replace(OTHER, profile="gpu-8", profile_says={**says, "max_restarts": "3", "env.NCCL_DEBUG": "4"})
    assert warnings(one, replace(OTHER, profile="gpu-8", profile_says=says)) == []
    assert warnings(one, other) == [
        "the profile gpu-8 of node 0 (host h0) is not that of node 1 (host h1): they differ in env.NCCL_DEBUG, "
        "max_restarts"
    ]


def test_what_would_end_the_run_otherwise_on_one_node_is_refused():
    text = "is {} on node 0 (host h0) and {} on node 1 (host h1)"
    assert misfit(NODE, replace(OTHER, max_restarts=3)) == "--max-restarts " + text.format(0, 3)
    assert misfit(NODE, replace(OTHER, retry="always")) == "--retry " + text.format("auto", "always")


def test_a_variable_of_the_profile_that_matters_is_refused_whatever_the_profiles_are_called():
    one = replace(NODE, profile="gpu-8", profile_says={"env.NCCL_ALGO": "Ring"})
    for profile, says, value in (("gpu-8", {"env.NCCL_ALGO": "Tree"}, "Tree"), ("", {}, "not set")):
        assert misfit(one, replace(OTHER, profile=profile, profile_says=says)) == (
            f"NCCL_ALGO in the profile is Ring on node 0 (host h0) and {value} on node 1 (host h1)"
        )
    assert misfit(one, replace(OTHER, profile_says={"env.NCCL_ALGO": "Tree"}, torch="2.12.0")).startswith("torch is ")


def test_clocks():
    assert clock_warning(NODE, OTHER, 29.0) is None
    assert "31 s ahead of" in clock_warning(NODE, OTHER, 31.0)
    assert "31 s behind" in clock_warning(NODE, OTHER, -31.0)


def test_the_order_is_that_of_the_node_ranks_and_else_as_it_was():
    def named(*ranks):
        return [replace(NODE, token=str(i), node_rank=rank) for i, rank in enumerate(ranks)]

    def order(*ranks):
        return [node.token for node in in_order(named(*ranks))]

    assert order(2, 0, 1) == ["1", "2", "0"]
    assert order(None, 1, None, 0) == ["3", "1", "0", "2"]
    assert order(None, None) == ["0", "1"]
    assert order(0, 0) == ["0", "1"]


def test_ranks_are_named_by_host():
    assert spans([NODE, replace(OTHER, nproc=1), NODE]) == "h0: ranks 0-1, h1: rank 2, h0: ranks 3-4"
    on_xla = [replace(NODE, device="xla"), replace(OTHER, device="xla", nproc=1)]
    assert spans(on_xla) == "h0: 2 ranks, h1: 1 rank"


def test_facts_survive_the_way_and_those_of_another_version_too():
    assert Facts.from_json(NODE.as_json()) == NODE
    assert Facts.from_json({"token": "x", "host": "h9", "later": 1}).name == "host h9"
