"""An agent's last word to the others."""

from __future__ import annotations

from types import SimpleNamespace

from distrain.launcher.joining import Joining
from distrain.launcher.watch import Head, Member
from tests.support.processes import wait_until


def test_the_node_where_all_meet_says_that_it_was_the_one_that_ended_well():
    heard = []
    head = Head(on_word=lambda op, message: None, timeout_s=10, admit=lambda message: None)
    hello = {"facts": {"token": "member"}}
    member = Member(
        on_word=lambda op, message: heard.append((op, dict(message))),
        timeout_s=10,
        address="127.0.0.1",
        port=head.port,
        hello=hello,
    )
    try:
        joining = Joining.__new__(Joining)  # without a rendezvous
        membership = SimpleNamespace(finished=lambda: None, check=lambda: None)
        facts = SimpleNamespace(token="head")
        place = SimpleNamespace(membership=membership, watch=head, facts=facts, is_head=False)
        joining._nodes = SimpleNamespace(place=place, holds_store=False)
        joining.succeeded()
        wait_until(lambda: heard, 5, what="the word")
    finally:
        member.close()
        head.close()
    assert heard == [("done", {"token": "head"})]
