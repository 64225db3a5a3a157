"""The pytest plugin: the mark, and the hooks that hand a test over to its ranks.

It is imported by every pytest run of an environment that has distrain, so it imports nothing that costs time; the
server is started, and torch imported there, when the first marked test comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import pytest

from distrain.testing.mark import DESCRIPTION, Mark, is_for_ranks, read_mark

if TYPE_CHECKING:
    from distrain.testing.ranks import RankGroup
    from distrain.testing.verdict import Verdict
    from distrain.testing.warm_server import WarmServer

__all__ = ["NO_PDB", "RANK"]

RANK: pytest.StashKey[Any] = pytest.StashKey()
"""In the configuration of a rank: its `rank.Rank`. Nowhere else is it set."""

_SERVER: pytest.StashKey[WarmServer] = pytest.StashKey()
_GROUP: pytest.StashKey[RankGroup] = pytest.StashKey()
_VERDICT: pytest.StashKey[Verdict] = pytest.StashKey()

NO_PDB = (
    "pdb does not reach the ranks of a distributed test; look at one with print(), or run its body in a script under "
    "`distrain launch`, where breakpoint() works on the rank that is shown."
)


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the fixtures, unless a plugin that was loaded before has one of the name: pytest would prefer the later."""
    from distrain.testing import fixtures

    others = [plugin for _, plugin in pluginmanager.list_name_plugin() if plugin is not None]
    ours = ModuleType(fixtures.__name__)
    for name in fixtures.__all__:
        if not any(_is_fixture(getattr(other, name, None)) for other in others):
            setattr(ours, name, getattr(fixtures, name))
    pluginmanager.register(ours, "distrain-fixtures")


def _is_fixture(value: object) -> bool:
    return type(value).__name__ == "FixtureFunctionDefinition" or hasattr(value, "_pytestfixturefunction")  # before 8.4


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", DESCRIPTION)


def pytest_unconfigure(config: pytest.Config) -> None:
    server = config.stash.get(_SERVER, None)
    if server is not None:
        server.close()


def _is_ours(item: pytest.Item) -> bool:
    """Whether this process hands the test to ranks; a rank, which is a pytest too, runs it."""
    return RANK not in item.config.stash and is_for_ranks(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    if not _is_ours(item) or item.config.getoption("setupplan", default=False):  # pytest sets nothing up, it only tells
        return (yield)
    problem: BaseException | None = None
    shared: tuple[str, ...] = ()
    try:
        mark = _read(item)
        shared = mark.shared
    except pytest.fail.Exception as error:
        problem = error
    function = cast(pytest.Function, item)  # the mark was read, or nothing comes of it
    everything = list(getattr(item, "fixturenames", ()))
    function.fixturenames = list(dict.fromkeys([*(name for name in everything if name in shared), *shared]))
    try:
        yield  # other plugins' set-up, which must not be left out whatever the mark says
    finally:
        function.fixturenames = everything
    if problem is not None:
        raise problem
    if item.config.getoption("setuponly", default=False):
        return None
    values = {name: function.funcargs[name] for name in shared}
    from distrain.testing.ranks import RankGroup

    group = item.stash[_GROUP] = RankGroup(_server_of(item.config), function, mark, values)
    _run(item, group, "setup")


def _read(item: pytest.Item) -> Mark:
    if item.config.getoption("trace", default=False):
        pytest.fail(f"--trace: {NO_PDB}", pytrace=False)
    return read_mark(item)


def _server_of(config: pytest.Config) -> WarmServer:
    from distrain.testing.warm_server import WarmServer

    server = config.stash.get(_SERVER, None)
    if server is None or not server.is_usable:
        server = config.stash[_SERVER] = WarmServer.start(config)
    return server


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Show other plugins no test that is not run here: Hypothesis would look at its fixtures, which are the ranks'."""
    __tracebackhide__ = True
    if not _is_ours(item):
        return (yield)
    function = cast(pytest.Function, item)
    test = function.obj
    function.obj = _is_run_by_the_ranks
    try:
        return (yield)
    finally:
        function.obj = test


def _is_run_by_the_ranks() -> None:
    raise AssertionError("a test of ranks is called in them")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not _is_ours(pyfuncitem):
        return None
    _run(pyfuncitem, pyfuncitem.stash[_GROUP], "call")
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    group = item.stash.get(_GROUP, None)
    if group is None:
        return (yield)
    del item.stash[_GROUP]
    try:
        _run(item, group, "teardown")
    finally:
        group.close()
        yield


def _run(item: pytest.Item, group: RankGroup, when: str) -> None:
    """Have the ranks do a phase of the test; what they came to is raised here, and told in the report's words."""
    from distrain.testing.verdict import RanksEndedError

    try:
        verdict = group.run(when)
    except KeyboardInterrupt:
        group.close()
        raise
    except BaseException:  # another plugin's deadline, such as pytest-timeout's
        item.add_report_section(when, "stacks of the ranks", group.interrupt())
        raise
    item.stash[_VERDICT] = verdict
    item.user_properties.extend(each for each in verdict.user_properties if each not in item.user_properties)
    _log(item, verdict.subtests)
    if verdict.outcome != "passed":
        raise RanksEndedError(verdict)


def _log(item: pytest.Item, subtests: tuple[pytest.TestReport, ...]) -> None:
    """Have this pytest report the subtests, as it does its own: at once, and not captured."""
    manager: Any = item.config.pluginmanager.getplugin("capturemanager")
    for report in subtests:
        with manager.global_and_fixture_disabled() if manager is not None else contextlib.nullcontext():
            item.ihook.pytest_runtest_logreport(report=report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    verdict = item.stash.get(_VERDICT, None)
    if verdict is None:
        return report
    del item.stash[_VERDICT]
    # Where a fixture of this process failed as well, its own report stands.
    if call.excinfo is None or call.excinfo.typename == "RanksEndedError":
        verdict.write_into(report)
    if item.config.getoption("usepdb", default=False) and report.failed:
        report.sections.append(("pdb", NO_PDB))
        call.excinfo = None  # so that pytest does not open the debugger in this process, which has no part in it
    return report
