"""torch's flight recorder, asked for by way of a pipe, and what it says in a few words."""

from __future__ import annotations

import os

import pytest
import torch.distributed  # noqa: F401 - brings the recorder

from distrain.supervision import flight


def entry(number, name="gloo:all_reduce", group=0, *, is_p2p=False):
    return {"pg_id": group, "collective_seq_id": number, "profiling_name": name, "is_p2p": is_p2p}


def status(begun, done):
    return {"last_enqueued_collective": str(begun), "last_completed_collective": str(done)}


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ({"0": status(11, 10)}, "at collective 11 (gloo:all_reduce)"),
        ({"0": status(13, 10)}, "at collective 11 (gloo:all_reduce)"),
        ({"0": status(10, 10)}, "past collective 10"),
        ({"0": status(12, 11)}, "at collective 12"),
        ({"0": status(-1, -1)}, ""),
        ({}, ""),
        (
            {"10": status(2, 1), "0": status(10, 10), "3": status(-1, -1)},
            "past collective 10 of group 0, at collective 2 of group 10 (gloo:barrier)",
        ),
    ],
)
def test_the_first_collective_that_is_not_done_is_told_for_each_group(statuses, words):
    entries = [entry(11, "gloo:send", is_p2p=True), entry(10), entry(11), entry(2, "gloo:barrier", 10)]
    assert flight.position({"pg_status": statuses, "entries": entries}) == words


def test_a_process_answers_as_often_as_it_is_asked(tmp_path):
    path = tmp_path / "flight.json"
    fd = flight.begin_to_answer(path)
    try:
        assert fd > 200
        for _ in range(2):
            records = flight.ask({3: (os.getpid(), fd, path)}, timeout_s=10)
            assert list(records) == [3]
            assert "version" in records[3]
    finally:
        os.close(fd)


def test_who_cannot_be_asked_is_not_waited_for(tmp_path):
    path = tmp_path / "flight.json"
    path.write_text("of another time")
    assert flight.ask({0: (os.getpid(), 0, path), 1: (os.getpid(), 999_999, path)}, timeout_s=60) == {}


def test_a_record_that_cannot_be_read_is_none(tmp_path):
    read, write = os.pipe()
    try:
        assert flight.ask({0: (os.getpid(), write, tmp_path / "flight.json")}, timeout_s=0.1) == {}
    finally:
        os.close(read)
        os.close(write)
