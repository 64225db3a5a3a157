"""Where the nodes meet: torch's c10d store on one of them, and beside it the watch.

The node that opens the place (the head) serves torch's store on the port of the endpoint, from a socket that the
supervisor has bound; its watch listens on another port, which the store tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]  # not in its __all__
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, dynamic_rendezvous
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

from distrain.errors import LaunchError
from distrain.launcher.facts import Facts, clock_warning
from distrain.launcher.membership import EndedElsewhereError, Membership
from distrain.launcher.precheck import await_answer, join_timeout_s
from distrain.launcher.watch import Head, Member
from distrain.plan.meeting import Meeting

__all__ = ["NODE_TIMEOUT_S", "MeetingPlace", "unshared_store"]

NODE_TIMEOUT_S = 10.0
"""After so much silence a node is lost; `--rdzv-conf node_timeout=…` sets another time."""

DEFAULTS = {"last_call_timeout": 5, "keep_alive_interval": 2, "keep_alive_max_attempt": 3}
"""torch's own make a new round wait for 30 s for more nodes, and for 15 s until a dead one is forgotten."""

_READ_TIMEOUT_S = 60
_WATCH_KEY = "distrain/watch"


class MeetingPlace:
    """This node's connection to where all meet.

    Args:
        meeting: Where and how the nodes meet.
        facts: This node's, but for its addresses.
        door: The bound socket of the node that opens the place, as a descriptor; None on the others.
        say: Tells the user.

    Raises:
        EndedElsewhereError: This node does not fit the others.
        LaunchError: Nobody answers there.
    """

    def __init__(self, meeting: Meeting, facts: Facts, *, door: int | None, say: Callable[..., None]) -> None:
        self._meeting = meeting
        self._timeout_s = float(meeting.conf.get("node_timeout", NODE_TIMEOUT_S))
        read_timeout = timedelta(seconds=int(meeting.conf.get("read_timeout", _READ_TIMEOUT_S)))
        server = {} if door is None else {"is_master": True, "wait_for_workers": False, "master_listen_fd": door}
        if door is None:
            own, there = await_answer(meeting, say, lambda: None)
        else:
            _let_next_run_have_port(door)
        self._store = TCPStore(meeting.host, meeting.port, timeout=read_timeout, **server)  # type: ignore[arg-type]
        if door is not None:
            own, there = await_answer(meeting, say, lambda: None)
        self.facts = replace(facts, address=meeting.local_addr or own, head_address=there)
        self.membership = Membership(self.facts, meeting.min_nodes, say)
        self.head_ahead_s = 0.0
        self.watch: Head | Member = self._open_watch() if door is not None else self._join_watch(say)
        _set_clock(lambda: self.head_ahead_s)

    @property
    def is_head(self) -> bool:
        return isinstance(self.watch, Head)

    def now_s(self) -> float:
        """Return the time on the head's clock."""
        return time.time() + self.head_ahead_s

    def handler(self, parameters: RendezvousParameters) -> RendezvousHandler:
        """Return torch's own rendezvous."""
        for key, value in {**DEFAULTS, "join_timeout": int(join_timeout_s(self._meeting))}.items():
            parameters.config.setdefault(key, value)
        parameters.local_addr = self.facts.address
        backend = C10dRendezvousBackend(self._store, parameters.run_id)
        return dynamic_rendezvous.create_handler(self._store, backend, parameters)

    def run_dir(self, proposed: str) -> str:
        """Return the run directory that the ranks share: that of the first node of the first round, for good."""
        return self._store.compare_set("distrain/run_dir", "", proposed).decode()

    def awaited(self) -> str:
        """Say whom this node waits for."""
        at = f"at {self._meeting.endpoint}; waiting up to {join_timeout_s(self._meeting):g} s for the others"
        return f"{self._num_here()} {at}"

    def too_few(self) -> str:
        """Say that not enough nodes came."""
        waited = f"{join_timeout_s(self._meeting):g} s at {self._meeting.endpoint}"
        return f"{self._num_here()} after {waited}; the ranks do not start"

    def _num_here(self) -> str:
        needed = self._meeting.min_nodes
        if isinstance(self.watch, Head):
            return f"{self.watch.num_here() + 1} of {needed} nodes are here"
        return f"fewer than {needed} nodes are here, or all places are taken"

    def wait_for_others(self) -> None:
        """Keep the place open until every other node has left.

        Raises:
            EndedElsewhereError: One has failed.
        """
        assert isinstance(self.watch, Head)
        while self.watch.num_here():
            self.membership.check()
            time.sleep(0.05)
        self.membership.check()

    def _open_watch(self) -> Head:
        watch = Head(on_word=self.membership.take, timeout_s=self._timeout_s, admit=self._admit)
        self._store.set(_WATCH_KEY, json.dumps({"port": watch.port, "head": self.facts.as_json()}))
        return watch

    def _admit(self, message: Mapping[str, Any]) -> str | None:
        refusal = self.membership.admit(message, time.time())
        if refusal is not None and self.membership.ending is not None:
            assert isinstance(self.watch, Head)
            self.watch.tell("refused", text=refusal)
        return refusal

    def _join_watch(self, say: Callable[[str], None]) -> Member:
        endpoint = self._meeting.endpoint
        try:
            self._store.wait([_WATCH_KEY], timedelta(seconds=30))
            told = json.loads(self._store.get(_WATCH_KEY))
        except (DistStoreError, RuntimeError) as error:
            raise LaunchError(
                f"what answers at {endpoint} is no launch of distrain (another program, or torchrun): {error}"
            ) from None
        head = Facts.from_json(told["head"])
        self.membership.head_name = head.name
        try:
            watch = Member(
                on_word=self.membership.take,
                timeout_s=self._timeout_s,
                address=self.facts.head_address,
                port=told["port"],
                hello={"facts": self.facts.as_json(), "time": time.time()},
            )
        except OSError as error:
            raise LaunchError(
                f"{head.name} answers at {endpoint} and not on port {told['port']}, where it watches the nodes "
                f"({(error.strerror or str(error)).lower()}). It has just ended, or a firewall is in between: the "
                "nodes have to reach all ports of each other."
            ) from None
        if watch.refusal is not None:
            raise EndedElsewhereError(watch.refusal)
        self.head_ahead_s = watch.head_ahead_s
        warning = clock_warning(self.facts, head, watch.head_ahead_s)
        if warning is not None:
            say(f"warning: {warning}")
        return watch


def _let_next_run_have_port(door: int) -> None:
    """Mark the bound socket so that the closed connections of this run do not keep the next from the port."""
    bound = socket.socket(fileno=door)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.detach()


def _set_clock(head_ahead_s: Callable[[], float]) -> None:
    """Let torch's rendezvous read the head's clock on every node.

    It compares times that other nodes have written with its own, so that nodes whose clocks differ by more than its
    keep-alive take each other for dead.
    """

    class HeadClock:
        @staticmethod
        def now(tz: timezone) -> datetime:
            return datetime.fromtimestamp(time.time() + head_ahead_s(), tz)

    assert hasattr(dynamic_rendezvous, "datetime"), "torch's rendezvous reads its clock another way now"
    dynamic_rendezvous.datetime = HeadClock


@contextlib.contextmanager
def unshared_store() -> Iterator[None]:
    """Keep torch from opening a store for the workers under this host's name; they get one of ours."""
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
