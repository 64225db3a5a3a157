"""The supervisor's signals."""

from __future__ import annotations

import sys

from tests.support.processes import run

LATE = """
import os, signal, sys
from distrain.launcher.incoming_signals import IncomingSignals

signals = IncomingSignals(["SIGTERM", "SIGINT"])
with signals.taken_over():
    os.kill(os.getpid(), signal.SIGTERM)
    assert list(signals) == [signal.SIGTERM]
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
sys.exit(75)
"""


def test_a_signal_behind_the_end_of_the_run_leaves_its_exit_code():
    run([sys.executable, "-c", LATE]).check(75)
