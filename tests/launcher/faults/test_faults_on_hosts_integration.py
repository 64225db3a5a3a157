"""Whatever fails on one of two hosts: both print the same report, and its first line is the truth."""

from __future__ import annotations

import json

import pytest

from tests.launcher.faults.corpus import CASES, PROGRAM
from tests.launcher.test_nodes_integration import ends
from tests.support.namespaces import hosts
from tests.support.processes import wait_until

pytestmark = pytest.mark.netns

STRUCK = {
    "value-error": "0",
    "exit-with-words": "1",
    "fails-before-the-first-step": "1",
    "segmentation-fault": "1",
    "killed": "0",
    "loses-a-connection-of-its-own": "0",
    "leaves-early": "1",
    "does-not-take-part": "1",
    "two-fail-together": "0,1",
}
"""Faults that differ in what travels between the nodes, and the ranks that they strike, one on each host."""


@pytest.fixture
def two():
    with hosts(2) as made:
        yield made
        wait_until(lambda: not any(host.processes() for host in made), 5, what="no process is left on the hosts")


@pytest.mark.parametrize("name", STRUCK)
def test_both_hosts_print_the_same_root_cause(tmp_path, two, name):
    case = next(each for each in CASES if each.name == name)
    options = ("--nnodes", "2", "--device", "cpu", "--grace", "5", "--rdzv-endpoint", "h0:29400", "--run-dir", "run")
    folders = [tmp_path / "run", tmp_path / "run" / "node-1"]
    told = [*options, PROGRAM, name, STRUCK[name]]
    with (
        two[0].launching("--node-rank", "0", *told, cwd=tmp_path, run_dir=folders[0]) as head,
        two[1].launching("--node-rank", "1", *told, cwd=tmp_path, run_dir=folders[1]) as member,
    ):
        errs = [ends(live, case.exit_code) for live in (head, member)]
    reports = {err[err.index("root cause: ") :].partition("\ndistrain: ")[0] for err in errs}
    assert len(reports) == 1, reports
    (report,) = reports
    first = report.splitlines()[0]
    records = [json.loads((folder / "failure.json").read_text()) for folder in folders]
    assert records[0] == records[1]
    rank, host = (records[0]["root_cause"][key] for key in ("rank", "host"))
    assert str(rank) in STRUCK[name].split(",")
    assert host == f"h{rank}"
    assert case.fits(first.replace(f"rank {rank} ", f"rank {case.struck(2)[-1]} "), 2), report
    assert f" on {host}: " in first
    if case.is_python:
        assert f"in {name.replace('-', '_')}" in report
