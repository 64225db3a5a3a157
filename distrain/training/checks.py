"""Checks of arguments that several modules share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from distrain.errors import did_you_mean

__all__ = ["one_of", "positive_int", "positive_number", "whole_number"]

T = TypeVar("T")


def whole_number(name: str, value: Any) -> int:
    """Return the value as an int if it is a whole number of any type, NumPy's too.

    Args:
        name: The argument's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def positive_int(name: str, value: Any) -> int:
    """Return the value if it is a whole number, 1 or more.

    Args:
        name: The argument's name, for the message.
        value: What the user gave.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more.")
    return int(value)


def one_of(name: str, value: T, valid: Sequence[T]) -> T:
    """Return the value if it is one of the valid ones.

    Args:
        name: The argument's name, for the message.
        value: What the user gave.
        valid: What it may be.

    Raises:
        ValueError: It is not.
    """
    if value not in valid:
        near = did_you_mean(str(value), [each for each in valid if isinstance(each, str)])
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, valid))}.{near}")
    return value


def positive_number(name: str, value: Any) -> float:
    """Return the value if it is a number above 0; infinity is one.

    Args:
        name: The argument's name, for the message.
        value: What the user gave.

    Raises:
        ValueError: It is not.
    """
    number = 0.0 if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not number > 0:
        raise ValueError(f"{name} is {value!r}; it must be a number above 0.")
    return number
