"""The watch between agents, over the loopback interface."""

from __future__ import annotations

import socket

import pytest

from distrain.launcher.watch import Head, Member, answers_as
from tests.support.processes import wait_until


class Heard(list):
    def __call__(self, op, message):
        self.append((op, dict(message)))

    def ops(self):
        return [op for op, _ in self]


@pytest.fixture
def head():
    heard = Heard()
    watch = Head(on_word=heard, timeout_s=0.5, admit=lambda message: message["facts"].get("refuse"), token="head")
    watch.heard = heard
    yield watch
    watch.close()


@pytest.fixture
def join(head):
    made = []

    def make(token, **facts):
        heard = Heard()
        watch = Member(
            on_word=heard,
            timeout_s=0.5,
            address="127.0.0.1",
            port=head.port,
            hello={"facts": {"token": token, **facts}, "time": 0.0},
        )
        watch.heard = heard
        made.append(watch)
        return watch

    yield make
    for each in made:
        each.close()


def test_what_one_says_reaches_all_others(head, join):
    first, second = join("a"), join("b")
    wait_until(lambda: head.num_here() == 2, 5)
    first.tell("failing", when=1.5)
    wait_until(lambda: head.heard and second.heard, 5)
    assert head.heard == second.heard == [("failing", {"when": 1.5, "token": "a"})]
    head.tell("restart", round=3)
    wait_until(lambda: first.heard and len(second.heard) == 2, 5)
    assert first.heard == [("restart", {"round": 3})]
    assert abs(first.head_ahead_s) < 1


def test_a_connection_that_closes_without_farewell_is_told_at_once(head, join):
    first, second = join("a"), join("b")
    second._head.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: head.heard and first.heard, 0.4)
    gone = ("gone", {"token": "b", "how": "has gone: its connection was closed"})
    assert head.heard == first.heard == [gone]
    assert head.num_here() == 1


def test_who_falls_silent_is_lost_on_both_sides(head, join):
    member = join("a")
    member._beat = lambda: None
    wait_until(lambda: head.heard and member.heard, 5)
    assert head.heard == [("gone", {"token": "a", "how": "has not been heard of for 0.5 s", "silent": True})]
    assert member.heard == [("head_gone", {"how": "has not heard of this one for 0.5 s", "silent": True})]


def test_a_head_that_falls_silent_is_lost(head, join):
    member = join("a")
    head._beat = lambda: None
    head.timeout_s = 60
    wait_until(lambda: member.heard, 5)
    assert member.heard == [("head_gone", {"how": "has not been heard of for 0.5 s", "silent": True})]


def test_silence_is_not_taken_for_loss_while_beats_come(head, join):
    members = [join("a"), join("b")]
    end = head._peers[0].heard_s + 1.5
    wait_until(lambda: head._peers[0].heard_s > end, 5)
    assert head.heard == members[0].heard == []


def test_a_farewell_is_no_loss(head, join):
    first, second = join("a"), join("b")
    second.tell("done")
    wait_until(lambda: first.heard, 5)
    second.close()
    wait_until(lambda: len(head._peers) == 1, 5)
    assert first.heard.ops() == head.heard.ops() == ["done"]
    first.tell("leave", how="was ended by SIGTERM")
    wait_until(lambda: "gone" in head.heard.ops(), 5)
    assert head.heard[-1] == ("gone", {"token": "a", "how": "was ended by SIGTERM"})


def test_who_is_refused_learns_why(head, join):
    assert join("a", refuse="no").refusal == "no"
    assert head.num_here() == 0


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b"{}\n", b'{"op": "hello"}\n', b"\xff\n", b"[" * 50_000 + b"\n"],
    ids=["HTTP", "list", "nothing", "no facts", "no text", "deep"],
)
def test_a_stranger_does_no_harm(head, join, noise):
    with socket.create_connection(("127.0.0.1", head.port)) as stranger:
        stranger.sendall(noise)
        member = join("a")
        wait_until(lambda: head.num_here() == 1, 5)
    assert head.heard == member.heard == []
    assert head._thread.is_alive()


@pytest.mark.parametrize("size", [0, 50_000])
def test_what_does_not_fit_into_the_connection_is_sent_when_there_is_room(head, join, size):
    """A reader that is slow for a moment must get every message whole, the last one too."""
    member = join("a")
    wait_until(lambda: head.num_here() == 1, 5)
    member._head.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    head._peers[0].sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    with member._lock:  # its thread cannot read
        for number in range(20):
            head.tell("failing", when=number, text="x" * size)
        head.tell("failed", text="the last word")
        assert bool(size) == bool(head._peers[0].unsent)
    head.drain()
    assert not head._peers[0].unsent
    wait_until(lambda: "failed" in member.heard.ops(), 5)
    assert [message.get("when") for _, message in member.heard] == [*range(20), None]


def test_an_error_in_the_watch_is_told_and_the_others_see_it_end(head, join, capsys):
    first, second = join("a"), join("b")
    wait_until(lambda: head.num_here() == 2, 5)

    def fail(op, message):
        second.heard(op, message)
        if op != "broken":
            raise KeyError("when")

    second.on_word = fail
    first.tell("failing")
    wait_until(lambda: "broken" in second.heard.ops(), 5)
    assert second.heard[-1] == ("broken", {"error": "KeyError: 'when'"})
    assert "in fail" in capsys.readouterr().err


def test_where_nodes_meet_at_the_loopback_interface_the_watch_listens_there():
    watch = Head(on_word=Heard(), timeout_s=0.5, admit=lambda message: None, address="127.0.0.1")
    try:
        assert watch._listener.getsockname()[0] == "127.0.0.1"
    finally:
        watch.close()


def test_anyone_can_ask_a_head_which_one_it_is(head):
    assert answers_as("head", "127.0.0.1", head.port)
    assert not answers_as("another", "127.0.0.1", head.port)
    assert head.num_here() == 0
    assert head.heard == []


def test_what_is_no_head_does_not_answer_as_one():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not answers_as("head", "127.0.0.1", port)
    assert not answers_as("head", "127.0.0.1", port)
