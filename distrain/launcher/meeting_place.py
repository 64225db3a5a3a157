"""Where the nodes meet: torch's c10d store on one of them, and beside it the watch.

The node that opens the place (the head) serves torch's store on the port of the endpoint, from a socket that the
supervisor has bound; its watch listens on another port, which the store tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn, TypeVar

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, dynamic_rendezvous
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

from distrain.errors import LaunchError
from distrain.launcher.apart import apart
from distrain.launcher.ended_elsewhere import EndedElsewhereError
from distrain.launcher.facts import Facts, clock_warning, warnings
from distrain.launcher.inquiry import CLUES, PLACED, VICTIM
from distrain.launcher.interface import is_own_everywhere
from distrain.launcher.membership import Membership
from distrain.launcher.precheck import PATIENCE_S, await_answer, join_timeout_s, loopback_of, node_name
from distrain.launcher.round_store import listen
from distrain.launcher.rounds import Held
from distrain.launcher.watch import Head, Member
from distrain.plan.meeting import Meeting
from distrain.supervision.failure import Standing

__all__ = ["NODE_TIMEOUT_S", "SUPERVISORS", "MeetingPlace", "unshared_store"]

NODE_TIMEOUT_S = 10.0
"""After so much silence a node is lost; `--rdzv-conf node_timeout=…` sets another time."""

DEFAULTS = {"last_call_timeout": 5, "keep_alive_interval": 2, "keep_alive_max_attempt": 3}
"""torch's own make a new round wait for 30 s for more nodes, and for 15 s until a dead one is forgotten."""

_READ_TIMEOUT_S = 60
_MEET_S = 15.0
"""What answers has so long to show that it is a launch of distrain."""

SUPERVISORS = "supervisors"
"""Words of the nodes' supervisors to each other, which the agents only pass on."""

_WATCH_KEY = "distrain/watch"
_RUN_DIR_KEY = "distrain/run_dir"
_LAUNCH_ID_KEY = "distrain/launch_id"

T = TypeVar("T")


class MeetingPlace:
    """This node's connection to where all meet.

    Args:
        meeting: Where and how the nodes meet.
        facts: This node's, but for its addresses.
        door: The bound socket of the node that opens the place, as a descriptor; None on the others.
        say: Tells the user.
        hear: Takes what other nodes' supervisors say.
        membership: What became of the nodes so far, where they have met elsewhere before.
        settled: What they have settled there.

    Raises:
        EndedElsewhereError: This node does not fit the others.
        LaunchError: Nobody answers there, or another program does.
    """

    def __init__(
        self,
        meeting: Meeting,
        facts: Facts,
        *,
        door: int | None,
        say: Callable[..., None],
        hear: Callable[[Mapping[str, Any]], None],
        membership: Membership | None = None,
        settled: Mapping[str, str] | None = None,
    ) -> None:
        self._meeting = meeting
        self._say = say
        self._hear = hear
        self.timeout_s = float(meeting.conf.get("node_timeout", NODE_TIMEOUT_S))
        if door is None:
            own, there = await_answer(meeting, say, lambda: None)
            otherwise = self._not_distrain("another program, or a proxy for a host that is not up")
        else:
            _let_next_run_have_port(door)
            otherwise = f"it has opened the place where all meet, and does not reach it itself at {meeting.endpoint}"
        self._store = self._apart(lambda: self._open_store(door), otherwise=otherwise)
        for key, value in (settled or {}).items():
            self._store.set(key, value)
        if door is not None:
            own, there = await_answer(meeting, say, lambda: None)
        self.facts = replace(facts, address=meeting.local_addr or own, head_address=there)
        self.membership = membership or Membership(self.facts, meeting.min_nodes, say)
        self.head_ahead_s = 0.0
        self.watch = self._open_watch() if door is not None else self._join_watch()
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
        return self._store.compare_set(_RUN_DIR_KEY, "", proposed).decode()

    def launch_id(self, proposed: str) -> str:
        """Return the id of this launch, which all its nodes and rounds have."""
        return self._store.compare_set(_LAUNCH_ID_KEY, "", proposed).decode()

    def held(self, address: str) -> Held:
        """Return what tells others that this node is the head, and where it is reached."""
        assert isinstance(self.watch, Head)
        return Held(
            token=self.facts.token,
            name=self.facts.name,
            address=address,
            port=self._meeting.port,
            watch_port=self.watch.port,
        )

    def move_here(self, facts: Facts, address: str) -> MeetingPlace:
        """Open another place on this node, for those who are left of this one, at an address they reach.

        The launch has another id there: what may still live of this one writes no checkpoint any more.
        """
        door = listen(address)
        port = door.getsockname()[1]
        settled = {_RUN_DIR_KEY: facts.run_dir, _LAUNCH_ID_KEY: secrets.token_hex(8)}
        return self._moved(address, port, facts, door=door.detach(), settled=settled)

    def move_to(self, held: Held, facts: Facts) -> MeetingPlace:
        """Go where those who are left of this place meet now."""
        return self._moved(held.address, held.port, facts)

    def _moved(
        self, host: str, port: int, facts: Facts, *, door: int | None = None, settled: Mapping[str, str] | None = None
    ) -> MeetingPlace:
        return MeetingPlace(
            replace(self._meeting, host=host, port=port),
            facts,
            door=door,
            say=self._say,
            hear=self._hear,
            membership=self.membership,
            settled=settled,
        )

    def close(self) -> None:
        """Close a place that nobody has come to."""
        self.watch.close()
        del self._store

    def awaited(self) -> str:
        """Say whom this node waits for."""
        at = f"at {self._meeting.endpoint}; waiting up to {join_timeout_s(self._meeting):g} s for the others"
        for_place = "" if self.is_head else ", or for a place as long as the run goes on"
        return f"{self._num_here()} {at}{for_place}{self._only_here()}"

    def too_few(self) -> str:
        """Say that not enough nodes came."""
        waited = f"{join_timeout_s(self._meeting):g} s at {self._meeting.endpoint}"
        return f"{self._num_here()} after {waited}; the ranks do not start{self._only_here()}"

    def _only_here(self) -> str:
        host, port = self._meeting.host, self._meeting.port
        if not is_own_everywhere(host):
            return ""
        return f". {host} leads each host to itself; for several hosts give --rdzv-endpoint HOST:{port}"

    def _num_here(self) -> str:
        needed = self._meeting.min_nodes
        if isinstance(self.watch, Head):
            return f"{self.watch.num_here() + 1} of {needed} nodes are here"
        few = f"fewer than {needed} nodes are here" if needed > 2 else "the nodes have not met yet"
        return f"{few}, or all places are taken"

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

    def _open_store(self, door: int | None) -> TCPStore:
        meeting = self._meeting
        server = {} if door is None else {"is_master": True, "wait_for_workers": False, "master_listen_fd": door}
        patience = timedelta(seconds=self._meet_s)
        store = TCPStore(meeting.host, meeting.port, timeout=patience, **server)  # type: ignore[arg-type]
        store.set_timeout(timedelta(seconds=int(meeting.conf.get("read_timeout", _READ_TIMEOUT_S))))
        return store

    @property
    def _meet_s(self) -> float:
        return min(_MEET_S, join_timeout_s(self._meeting))

    def _apart(self, call: Callable[[], T], *, otherwise: str) -> T:
        """Make a call that whatever answers at the meeting place may leave waiting: it can be any program.

        Raises:
            LaunchError: It does not answer as a launch of distrain; the text is `otherwise`.
        """
        node, endpoint = node_name(self._meeting.node_rank), self._meeting.endpoint

        def wait() -> None:
            self._say(f"{node}: no launch of distrain answers at {endpoint} yet; waiting up to {self._meet_s:g} s")

        def give_up() -> NoReturn:
            raise LaunchError(f"{node}: {otherwise}")

        try:
            return apart(call, after=[(PATIENCE_S, wait), (self._meet_s, give_up)])
        except RuntimeError:  # torch's, on a broken conversation
            give_up()

    def _not_distrain(self, perhaps: str) -> str:
        return (
            f"what answers at {self._meeting.endpoint} is no launch of distrain. Is it {perhaps}? Give the address of "
            "the node where all meet, and a port that is free there."
        )

    def _open_watch(self) -> Head | Member:
        """Open the watch, unless another node was here first and has opened its own: then this one asks to join it."""
        watch = Head(
            on_word=self._take,
            timeout_s=self.timeout_s,
            admit=self._admit,
            address=loopback_of(self._meeting),
            token=self.facts.token,
        )
        told = json.dumps({"port": watch.port, "head": self.facts.as_json()})
        if self._store.compare_set(_WATCH_KEY, "", told).decode() == told:
            self.membership.meets_at(self.facts, None)
            return watch
        watch.close()
        return self._join_watch()

    def _take(self, op: str, message: Mapping[str, Any]) -> None:
        if op == SUPERVISORS:
            self._hear(message)
            if message["word"]["word"] == CLUES and message["round"] == self.membership.round:
                self.membership.has_looked(message["token"])
            return
        self.membership.take(op, message)
        if op == PLACED:
            self._hear({**message, "word": {"word": PLACED, "ranks": message["ranks"]}})
        if op == "failing" and message["standing"] < Standing.CAUSE:
            # the cause of it may be a rank here that shows nothing wrong
            self._hear({**message, "word": {"word": VICTIM}})

    def _admit(self, message: Mapping[str, Any]) -> str | None:
        refusal = self.membership.admit(message, time.time())
        if refusal is not None and self.membership.ending is not None:
            assert isinstance(self.watch, Head)
            self.watch.tell("refused", text=refusal)
        return refusal

    def _join_watch(self) -> Member:
        endpoint = self._meeting.endpoint
        told = self._apart(self._ask_for_watch, otherwise=self._not_distrain("torchrun"))
        head = Facts.from_json(told["head"])
        self.membership.meets_at(self.facts, head)
        try:
            watch = Member(
                on_word=self._take,
                timeout_s=self.timeout_s,
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
        clock = clock_warning(self.facts, head, watch.head_ahead_s)
        for line in (*warnings(self.facts, head), *([clock] if clock else [])):
            self._say(f"warning: {line}")
        return watch

    def _ask_for_watch(self) -> dict[str, Any]:
        self._store.wait([_WATCH_KEY], timedelta(seconds=self._meet_s))
        told: dict[str, Any] = json.loads(self._store.get(_WATCH_KEY))
        return told


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
