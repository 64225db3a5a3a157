"""The record of an exception, whatever the exception is like."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import types

import pytest

from distrain.supervision.exception_record import RECORD_NBYTES, encode, exception_record
from distrain.supervision.failure import frames_of


def raised(call) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - also SystemExit
        return error
    raise AssertionError("nothing was raised")


def recorded(error: BaseException) -> dict:
    """The record as another process reads it."""
    data = encode(exception_record(error, error.__traceback__, rank=3, step=7))
    assert len(data) <= RECORD_NBYTES
    return json.loads(data)


def test_what_happened_where_and_when():
    def fails():
        raise ValueError("bad shape")

    record = recorded(raised(fails))
    assert (record["rank"], record["pid"], record["step"], record["exit_code"]) == (3, os.getpid(), 7, 1)
    assert (record["type"], record["module"], record["message"]) == ("ValueError", "builtins", "bad shape")
    assert record["monotonic_ns"] > 0
    assert record["frames"][-1] == {
        "file": __file__,
        "line": fails.__code__.co_firstlineno + 1,
        "function": "fails",
        "code": 'raise ValueError("bad shape")',
    }
    assert record["traceback"].endswith("ValueError: bad shape\n")


@pytest.mark.parametrize(("code", "expected"), [(7, 7), (None, 0), ("no data", 1), (256 + 3, 3), (-1, 255)])
def test_exit_codes_are_those_of_the_interpreter(code, expected):
    assert recorded(SystemExit(code))["exit_code"] == expected


def test_types_of_packages_are_qualified():
    assert recorded(raised(lambda: json.loads("{")))["type"] == "json.decoder.JSONDecodeError"


def test_the_exceptions_that_it_came_from():
    def fails():
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise OSError("second")  # noqa: B904
        except OSError as error:
            raise ValueError("third") from error

    record = recorded(raised(fails))
    assert [(link["how"], link["type"], link["message"]) for link in record["chain"]] == [
        ("cause", "OSError", "second"),
        ("context", "KeyError", "'first'"),
    ]
    assert record["chain"][0]["frames"][-1]["function"] == "fails"
    assert "The above exception was the direct cause" in record["traceback"]


def test_a_suppressed_context_is_left_out():
    def fails():
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None

    assert recorded(raised(fails))["chain"] == []


def test_an_exception_that_came_from_itself():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert [link["message"] for link in recorded(one)["chain"]] == ["two"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups came with Python 3.11")
def test_notes_and_members_of_a_group():
    error = ExceptionGroup("several", [ValueError("a"), OSError("b")])  # noqa: F821
    error.add_note("batch 17")
    record = recorded(error)
    assert record["notes"] == ["batch 17"]
    assert record["chain"] == []
    assert [each["type"] for each in record["members"]] == ["ValueError", "OSError"]
    assert "batch 17" in record["traceback"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
def test_members_keep_what_they_came_from_and_their_own_members():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__context__ = OSError("why"), ExceptionGroup("before", [KeyError("k")])  # noqa: F821
    record = recorded(ExceptionGroup("all", [one, ExceptionGroup("inner", [two])]))  # noqa: F821
    first, inner = record["members"]
    assert [(link["how"], link["message"]) for link in first["chain"]] == [("cause", "why")]
    (second,) = inner["members"]
    assert [(link["how"], link["members"][0]["type"]) for link in second["chain"]] == [("context", "KeyError")]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
def test_groups_of_many_deep_and_long_exceptions_fit():
    error = ValueError("x" * 10_000)
    for _ in range(8):
        links = [ValueError("y" * 10_000) for _ in range(8)]
        for link in links:
            link.__cause__ = error
        error = ExceptionGroup("g" * 10_000, [error, *links])  # noqa: F821
    record = recorded(error)
    assert record["message"].startswith("ggg")
    assert len(record["members"]) == 9
    assert record["members"][0]["members"][0]["members"]


def test_the_place_of_a_syntax_error(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("x = 1\nfor\n")
    record = recorded(raised(lambda: compile(path.read_text(), str(path), "exec")))
    assert (record["place"]["file"], record["place"]["line"], record["place"]["code"]) == (str(path), 2, "for")
    assert frames_of(record)[-1].file == str(path)


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class NotesError(Exception):
    @property
    def __notes__(self):
        raise RuntimeError("no notes")


class OddError(Exception):
    __notes__ = 17


@pytest.mark.parametrize("kind", [MuteError, OddError, NotesError])
def test_exceptions_that_fail_when_they_are_shown(kind):
    record = recorded(raised(lambda: (_ for _ in ()).throw(kind("text"))))
    assert record["type"].endswith(kind.__name__)
    assert kind.__name__ in record["traceback"]
    if kind is MuteError:
        assert record["message"] == "<no message: its __str__ raised RuntimeError>"


@pytest.mark.parametrize("text", ["x" * 50_000_000, "line of text\n" * 1_000_000, "\0" * 100_000, "🏖️" * 100_000])
def test_a_huge_message_is_cut_in_its_middle(text):
    record = recorded(ValueError("begin " + text + " end"))
    assert len(record["message"].encode()) <= 20_000
    assert record["message"].startswith("begin ")
    assert record["message"].endswith(" end")
    assert "left out" in record["message"]


def test_half_characters_are_replaced():
    assert recorded(ValueError("a\ud800b"))["message"] == "a?b"


def test_deep_stacks_keep_their_ends():
    source = textwrap.dedent(
        """
        def one(n): return another_function(n)
        def another_function(n): return bottom() if n == 0 else one(n - 1)
        def bottom(): raise ValueError("deep")
        """
    )
    module = types.ModuleType("deep")
    exec(source, vars(module))
    record = recorded(raised(lambda: module.one(400)))
    functions = [frame["function"] for frame in record["frames"]]
    assert len(functions) <= 200
    assert functions[0] == "raised"
    assert functions[-1] == "bottom"
    assert "left out" in record["traceback"]
    assert record["traceback"].startswith("Traceback (most recent call last):\n")
    assert record["traceback"].endswith("ValueError: deep\n")


def test_many_long_exceptions_in_a_chain_fit():
    error = None
    for i in range(50):
        new = ValueError(f"{i} " + "é" * 15_000)
        new.__cause__ = error
        error = new
    record = recorded(error)
    assert record["message"].startswith("49 ")
    assert len(record["chain"]) == 10
