"""Whatever fails on one of two hosts: both print the same report, and its first line is the truth."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.launcher.faults.corpus import CASES, Case
from tests.launcher.faults.on_hosts import Told, strike
from tests.support.namespaces import hosts
from tests.support.processes import wait_until

pytestmark = pytest.mark.netns

ALWAYS = {
    ("value-error", 1, "0"),
    ("exit-with-words", 1, "1"),
    ("fails-before-the-first-step", 1, "1"),
    ("segmentation-fault", 1, "1"),
    ("killed", 1, "0"),
    ("loses-a-connection-of-its-own", 1, "0"),
    ("leaves-early", 1, "1"),
    ("does-not-take-part", 2, "3"),
    ("two-fail-together", 2, "1,2"),
}
"""Faults that differ in what travels between the nodes, the ranks on each host, and those that it strikes; the whole
corpus is deep."""


def marked(case: Case, nproc: int, struck: str):
    is_always = (case.name, nproc, struck) in ALWAYS
    name = f"{case.name}-{nproc}-{struck.replace(',', '+')}"
    return pytest.param(case, nproc, struck, id=name, marks=() if is_always else (pytest.mark.deep,))


def everywhere(case: Case):
    """One rank of each host, the first and the last; of several that are struck, on one host and on both."""
    if case.ranks:
        return [(1, "0,1"), (2, "0,1"), (2, "1,2")]
    return [(1, "0"), (1, "1"), (2, "0"), (2, "3")]


PARAMETERS = [marked(case, *how) for case in CASES for how in everywhere(case)]
assert sum(not each.marks for each in PARAMETERS) == len(ALWAYS)


@pytest.fixture
def two():
    with hosts(2) as made:
        yield made
        wait_until(lambda: not any(host.processes() for host in made), 20, what="no process is left on the hosts")


@pytest.mark.parametrize(("case", "nproc", "struck"), PARAMETERS)
def test_both_hosts_print_the_same_root_cause(tmp_path, two, case, nproc, struck):
    check(strike(two, tmp_path, case, struck, nproc=nproc), case, nproc, struck)


@pytest.mark.deep
@pytest.mark.parametrize("nnodes", ["2", "1:2"])
def test_where_a_host_has_left_the_run_is_not_started_again(tmp_path, two, nnodes):
    """The ranks of h0 have ended well too early: torch would not have them come to another attempt, and none begins."""
    case = next(each for each in CASES if each.name == "leaves-early")
    told = strike(two, tmp_path, case, "0", nnodes=nnodes, options=["--max-restarts", "1"])
    check(told, case, 1, "0")
    assert "distrain: not started again: the ranks of node 0 (host h0) have ended\n" in told[1].printed
    assert "start anew" not in told[0].printed
    assert "going on" not in told[0].printed


def check(told: Sequence[Told], case: Case, nproc: int, struck: str) -> None:
    """Both hosts have the same report, and it is true."""
    assert [each.exit_code for each in told] == [case.exit_code] * 2, told
    report = told[0].report
    assert report, told
    assert told[1].report == report
    assert told[1].record == told[0].record
    cause = told[0].record["root_cause"]
    rank, host = cause["rank"], cause["host"]
    assert host == f"h{rank // nproc}"
    assert report.startswith(f"root cause: rank {rank} on {host}: {cause['kind']}: {cause['message']}\n")
    assert case.fits(report.partition("\n")[0], struck), report
    where = f"in {case.name.replace('-', '_')}"
    if case.is_python:
        assert where in report or "in __getitem__" in report, report
        assert cause["traceback"]
    if case.is_crash:
        assert where in report or "in _die" in report, report
