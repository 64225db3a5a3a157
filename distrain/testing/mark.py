"""`@pytest.mark.distributed`: its arguments, read and checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import pytest

from distrain.errors import did_you_mean

__all__ = ["DESCRIPTION", "Mark", "is_for_ranks", "read_mark"]

DESCRIPTION = (
    "distributed(nproc, timeout_s=60, shared=()): run the test on nproc gloo ranks forked from a warm server; fixtures "
    "named in shared run once, in pytest's process (distrain)"
)

DEFAULT_TIMEOUT_S = 60.0

_ARGUMENTS = ("nproc", "timeout_s", "shared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The arguments of the mark.

    Args:
        nproc: Number of ranks.
        timeout_s: Seconds for fixtures and body together; after them every rank's stack is shown.
        shared: Fixtures that run in pytest's process; ranks get copies of the values. `tmp_path` always does.
    """

    nproc: int
    timeout_s: float = DEFAULT_TIMEOUT_S
    shared: tuple[str, ...] = ("tmp_path",)


def is_for_ranks(item: pytest.Item) -> bool:
    """Say whether the test has the mark.

    Others have a mark of this name as well, ignite's own tests for one. A project that has registered the name itself
    keeps it where it is used without arguments, or with some that are nothing like ours.

    Args:
        item: The test.
    """
    mark = item.get_closest_marker("distributed")
    if mark is None:
        return False
    return _looks_like_ours(mark) or not _has_another_mark_of_this_name(item.config)


def _looks_like_ours(mark: pytest.Mark) -> bool:
    is_number = len(mark.args) == 1 and type(mark.args[0]) is int
    return is_number or any(name in _ARGUMENTS or did_you_mean(name, _ARGUMENTS) for name in mark.kwargs)


def _has_another_mark_of_this_name(config: pytest.Config) -> bool:
    registered = (line for line in config.getini("markers") if line != DESCRIPTION)
    return any(line.partition(":")[0].partition("(")[0].strip() == "distributed" for line in registered)


def read_mark(item: pytest.Item) -> Mark:
    """Return the mark of a test; fail the test when the mark is wrong, or the test of a kind that ranks cannot run."""
    mark = item.get_closest_marker("distributed")
    assert mark is not None
    for name in mark.kwargs:
        if name not in _ARGUMENTS:
            _refuse(f"has no argument {name!r}; there are {', '.join(_ARGUMENTS)}.{did_you_mean(name, _ARGUMENTS)}")
    if len(mark.args) > 1 or (mark.args and "nproc" in mark.kwargs):
        _refuse(f"takes nproc alone without its name, and got {mark.args!r}; write distributed(nproc=2, timeout_s=30)")
    nproc = mark.args[0] if mark.args else mark.kwargs.get("nproc")
    if type(nproc) is not int or nproc < 1:
        _refuse(f"got nproc={nproc!r}; it must be the number of ranks, 1 or more")
    timeout_s = mark.kwargs.get("timeout_s", DEFAULT_TIMEOUT_S)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not timeout_s > 0:
        _refuse(f"got timeout_s={timeout_s!r}; it must be a number of seconds, more than 0")
    shared = mark.kwargs.get("shared", ())
    if isinstance(shared, str) or not isinstance(shared, Iterable):
        _refuse(f"got shared={shared!r}; it must be a list of fixtures' names")
    _check_kind(item)
    return Mark(nproc=nproc, timeout_s=float(timeout_s), shared=tuple(dict.fromkeys(("tmp_path", *shared))))


def _check_kind(item: pytest.Item) -> None:
    import unittest  # a fifth of this plugin's import, which every pytest run would pay otherwise

    if not isinstance(item, pytest.Function) or (item.cls is not None and issubclass(item.cls, unittest.TestCase)):
        _refuse("works on test functions and on methods of plain classes, not on unittest.TestCase or others' items")
    if inspect.iscoroutinefunction(item.obj):
        _refuse("works on plain functions; call asyncio.run() in the body instead of making it a coroutine")


def _refuse(what: str) -> NoReturn:
    pytest.fail(f"@pytest.mark.distributed {what}", pytrace=False)
