"""Messages over a socket."""

from __future__ import annotations

import socket

from distrain.launcher.protocol import Channel


def test_a_channel_is_open_as_long_as_the_other_end_is_and_loses_nothing_by_the_question():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    assert ours.is_open()
    theirs.send("word", number=1)
    assert ours.is_open()
    theirs.close()
    assert ours.receive() == [{"op": "word", "number": 1}]
    assert not ours.is_open()
    ours.close()
    assert not ours.is_open()
