"""Rules that hold for every test: it leaves nothing behind, it does not skip silently, its golden text is true."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks, real_parts

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="write the golden texts under tests/golden anew instead of comparing with them",
    )


def pytest_configure() -> None:
    leaks.adopt_orphans()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start torch_xla where it will be tested: before the first test, because it sets environment variables for good,
    and before the first backward pass, after which torch's autograd takes no further kind of device.
    """
    if any(item.get_closest_marker("xla") for item in session.items) and importlib.util.find_spec("torch_xla"):
        os.environ.setdefault("PJRT_DEVICE", "CPU")
        importlib.import_module("torch_xla").device()


@pytest.fixture(autouse=True)
def leave_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaks an environment variable, thread, child, orphan, listening port or process group.

    Ranks of a distributed test end with it, and whatever they have started is ended by the plugin.
    """
    if request.node.get_closest_marker("distributed") is not None:
        yield
        return
    before = leaks.Snapshot.take()
    yield
    found = leaks.leaks_since(before)
    if found:
        leaks.clean_up(before)
        pytest.fail("the test left behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return `check(name, text)`: the text must be that of tests/golden/<name>.

    `pytest --regenerate-golden` writes the files anew; the difference is then read in `git diff`.
    """

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regenerate-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        hint = "if the new text is right, run pytest --regenerate-golden and read the git diff"
        if not path.exists():
            pytest.fail(f"there is no golden text {path}; {hint}", pytrace=False)
        expected = path.read_text()
        if text != expected:
            lines = difflib.unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
            pytest.fail("\n".join([*lines, hint]), pytrace=False)

    return check


@pytest.fixture(scope="session")
def xla_device() -> Any:
    """Return this process's XLA device, a CPU unless PJRT_DEVICE says otherwise."""
    try:
        import torch_xla
    except ImportError as error:
        real_parts.missing(f"torch_xla ({error}): pip install -e '.[test,xla]' in an environment of its own")
    return torch_xla.device()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marks = [name for name in real_parts.MARKERS if item.get_closest_marker(name) is not None]
    if report.skipped and not hasattr(report, "wasxfail") and marks and real_parts.in_ci():
        report.outcome = "failed"
        report.longrepr = f"a test marked {', '.join(marks)} must not skip in CI: {_skip_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and real_parts.in_ci():
        report.outcome = "failed"
        report.longrepr = (
            f"{collector.nodeid} skips as a whole, which hides its tests from CI: "
            f"mark them and ask for the part in a fixture ({_skip_reason(report)})"
        )
    return report


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
