"""What the first process of a container does about signals."""

from __future__ import annotations

import os
import signal

import pytest

from distrain.cli import first_process, main


@pytest.fixture
def dispositions():
    """Put the signals back afterwards, and yield a way to ask for them."""
    before = {number: signal.getsignal(number) for number in first_process.ENDING}
    yield lambda: {number: signal.getsignal(number) for number in first_process.ENDING}
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_process_like_others_leaves_its_signals_alone(dispositions):
    before = dispositions()
    main(["--version"])
    assert dispositions() == before


@pytest.mark.parametrize("number", first_process.ENDING)
def test_the_first_one_ends_at_signals_as_others_do(dispositions, monkeypatch, number):
    signal.signal(number, signal.SIG_DFL)
    monkeypatch.setattr("distrain.cli.is_first_process", lambda: True)
    main(["--version"])
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.code == 128 + number


def test_what_is_ignored_or_taken_over_stays_so(dispositions):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    first_process.end_at_signals()
    assert dispositions()[signal.SIGHUP] == signal.SIG_IGN
    assert dispositions()[signal.SIGTERM] == signal.default_int_handler
