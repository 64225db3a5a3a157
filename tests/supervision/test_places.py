"""Where ranks of several nodes stand, together."""

from __future__ import annotations

from distrain.supervision.frames import Frame
from distrain.supervision.places import Place, mark_of, merged, odd_ones_out


def place(*ranks, waits=True, known=True, stopped=False, mark="m"):
    return Place(ranks=ranks, is_stopped=stopped, is_known=known, waits_for_others=waits, mark=mark)


def test_those_of_the_same_place_are_one_group_wherever_they_run():
    assert merged([place(0), place(2, 3, mark="x"), place(1), place(4)]) == [place(0, 1, 4), place(2, 3, mark="x")]
    assert merged([place(0), place(1, waits=False), place(2, stopped=True)]) == [
        place(0),
        place(1, waits=False),
        place(2, stopped=True),
    ]


def test_one_that_was_stopped_is_odd_whatever_the_others_do_once_it_goes_on():
    assert odd_ones_out([place(0, 1, waits=False), place(2, stopped=True)]) == (2,)
    assert odd_ones_out([place(0, 1), place(3, waits=False), place(2, stopped=True)]) == (2,)
    assert odd_ones_out([place(0, 1, stopped=True), place(2, stopped=True, mark="x")]) == (2,)


def test_the_mark_is_that_of_file_line_and_function():
    here = Frame(file="a.py", line=3, function="f")
    assert mark_of([here]) == mark_of([Frame(file="a.py", line=3, function="f", code="f()")])
    assert (
        len({mark_of(frames) for frames in ([], [here], [here, here], [Frame(file="a.py", line=4, function="f")])}) == 4
    )
