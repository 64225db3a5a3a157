"""An agent's last word to the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distrain.launcher.ended_elsewhere import EndedElsewhereError
from distrain.launcher.joining import Joining
from distrain.launcher.watch import Head, Member
from tests.support.processes import wait_until


@pytest.fixture
def met():
    """A head with one member; what that hears."""
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
    yield head, heard
    member.close()
    head.close()


def joined(head, *, is_head):
    joining = Joining.__new__(Joining)  # without a rendezvous
    membership = SimpleNamespace(finished=lambda: None, check=lambda: None)
    facts = SimpleNamespace(token="head")
    place = SimpleNamespace(membership=membership, watch=head, facts=facts, is_head=is_head)
    joining._nodes = SimpleNamespace(place=place, holds_store=False)
    return joining


def test_the_node_where_all_meet_says_that_it_was_the_one_that_ended_well(met):
    head, heard = met
    joined(head, is_head=False).succeeded()
    wait_until(lambda: heard, 5, what="the word")
    assert heard == [("done", {"token": "head"})]


def test_the_node_where_all_meet_says_of_which_other_node_it_ends(met):
    head, heard = met
    joined(head, is_head=True).left(EndedElsewhereError("node 1 was ended by SIGTERM", signal=15))
    wait_until(lambda: heard, 5, what="the word")
    assert heard == [("head_gone", {"how": "has ended: node 1 was ended by SIGTERM", "signal": 15})]
