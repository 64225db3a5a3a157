"""Which failures are worth another attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distrain.errors import SupersededError
from distrain.launcher.retry import Blow, why_not_again

ERROR = Blow(is_error=True, exit_code=1, what="ValueError: no", place="train.py:7", step=12)
KILLED = Blow(is_error=False, exit_code=-9, what="SIGKILL", place="", step=0)


def test_an_error_in_the_middle_is_worth_another_attempt():
    assert why_not_again(ERROR, None) is None


def test_an_error_before_the_first_step_is_not():
    assert "before the first step" in why_not_again(replace(ERROR, step=0), None)


def test_where_nobody_counted_steps_an_error_may_be_a_late_one():
    assert why_not_again(replace(ERROR, step=None), replace(ERROR, step=None)) is None


def test_the_same_error_at_the_same_step_twice_is_not():
    assert "at step 12 twice" in why_not_again(ERROR, ERROR)


def test_addresses_and_numbers_in_the_message_make_no_other_error():
    said = [replace(ERROR, what=f"ValueError: bad <object at 0x7f{pid:x}> in pid {pid}") for pid in (4711, 4812)]
    assert "at step 12 twice" in why_not_again(*said)


@pytest.mark.parametrize("change", [{"step": 13}, {"what": "ValueError: other"}, {"place": "train.py:8"}])
def test_another_error_or_another_step_is(change):
    assert why_not_again(ERROR, replace(ERROR, **change)) is None


def test_a_usage_error_is_not():
    usage = Blow(is_error=True, exit_code=2, what="exit code 2", place="", step=None)
    assert "usage error" in why_not_again(usage, None)


def test_an_exception_that_happens_to_end_with_2_is_no_usage_error():
    assert why_not_again(replace(ERROR, exit_code=2), None) is None


def test_a_death_is_worth_another_attempt_whenever_and_however_often():
    assert why_not_again(KILLED, None) is None
    assert why_not_again(KILLED, KILLED) is None


def test_a_launch_whose_checkpoints_another_one_took_over_is_not_started_again():
    name = f"{SupersededError.__module__}.{SupersededError.__qualname__}"
    taken = replace(ERROR, what=f"{name}: Another launch trains in …")
    assert "another launch trains" in why_not_again(taken, None)
