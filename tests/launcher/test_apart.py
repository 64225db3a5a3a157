"""Calls in another thread, with a deadline and a look around."""

from __future__ import annotations

import threading

import pytest

from distrain.launcher.apart import apart


@pytest.fixture
def never():
    """A call that waits, in native code as it were, until the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()
    for thread in threading.enumerate():
        if thread.name == "distrain-apart":
            thread.join(5)


def test_what_the_call_returns_or_raises_comes_back():
    assert apart(lambda: 7) == 7
    with pytest.raises(KeyError, match="gone"):
        apart(lambda: {}["gone"])


def test_the_waiting_ends_where_a_look_around_says_so(never):
    def check():
        raise InterruptedError("a node was lost")

    with pytest.raises(InterruptedError, match="a node was lost"):
        apart(never, check=check)


def test_what_is_due_is_called_in_the_order_of_its_time(never):
    called = []

    def give_up():
        raise TimeoutError(f"after {called}")

    with pytest.raises(TimeoutError, match=r"after \['patience'\]"):
        apart(never, after=[(0.2, give_up), (0.1, lambda: called.append("patience"))])
