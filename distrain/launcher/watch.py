"""The watch between the nodes' agents: who is there, who has gone, and word from one to all.

torch's rendezvous learns of a lost node only when its own keep-alive runs out, tells nobody, and its store's calls can
wait for many minutes on a link that was cut. So every agent keeps a connection to the agent on the node where all meet
(the head). Both sides send a beat now and then; one that is not heard for `timeout_s` is lost, and a connection that
closes without a word of farewell says so at once.

    member ──hello(facts), beat, word…──►  head  ──►  word to every other member
           ◄──welcome(time) or refused──
           ◄──lost── to one that is not heard of, in case it hears
    anyone ──who──► head ──here(token)──►

Messages are JSON lines. Each side has one thread; what arrives is handed to `on_word(op, message)` in that thread.
Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distrain.launcher.watch_peer import Peer

__all__ = ["Head", "Member", "answers_as"]

OnWord = Callable[[str, Mapping[str, Any]], None]
Admit = Callable[[Mapping[str, Any]], str | None]

_DRAIN_S = 1.0
_ASK_S = 2.0


@dataclass(kw_only=True)
class _Watch:
    """What both sides share: the thread, the beat, the clock that notices its own absence.

    Args:
        on_word: Called with each message.
        timeout_s: After so much silence a peer is lost.
    """

    on_word: OnWord
    timeout_s: float
    _selector: selectors.DefaultSelector = field(init=False, default_factory=selectors.DefaultSelector)
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)
    _closing: bool = field(init=False, default=False)
    _ended: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._beat_s = self.timeout_s / 5
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="distrain-watch", daemon=True)

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it, and a watch that sleeps is none
            traceback.print_exc()
            self._closing = True
            self.on_word("broken", {"error": f"{type(error).__name__}: {error}"})

    def _watch(self) -> None:
        beaten_s = looked_s = time.monotonic()
        while not self._closing:
            ready = self._selector.select(self._beat_s / 4)
            now = time.monotonic()
            if now - looked_s > self.timeout_s / 2:
                for peer in self._connected():  # it was this process that was away: stopped, or starved
                    peer.heard_s = now
            looked_s = now
            with self._lock:
                for key, events in ready:
                    if events & selectors.EVENT_WRITE:
                        self._flush(key.data)
                    if events & selectors.EVENT_READ and key.data is not None:
                        self._take(key.data)
                if now - beaten_s >= self._beat_s:
                    beaten_s = now
                    self._beat()
                self._look(now)

    def _send(self, peer: Peer, op: str, **fields: Any) -> None:
        """Send a message; what cannot go out now goes when there is room."""
        peer.send(op, **fields)
        if peer.unsent:
            self._selector.modify(peer.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)

    def _flush(self, peer: Peer) -> None:
        peer.flush()
        if not peer.unsent:
            self._selector.modify(peer.sock, selectors.EVENT_READ, peer)

    def drain(self) -> None:
        """Wait a moment until everything said has gone out: a last word before the process ends."""
        end_s = time.monotonic() + _DRAIN_S
        while any(peer.unsent for peer in self._connected()) and time.monotonic() < end_s and not self._closing:
            time.sleep(_DRAIN_S / 50)

    def _connected(self) -> list[Peer]:
        raise NotImplementedError

    def _take(self, peer: Peer | socket.socket) -> None:
        raise NotImplementedError

    def _beat(self) -> None:
        raise NotImplementedError

    def _look(self, now: float) -> None:
        raise NotImplementedError

    def _gone(self, peer: Peer, how: str) -> None:
        raise NotImplementedError

    def _silence(self) -> str:
        return f"has not been heard of for {self.timeout_s:g} s"

    def _what(self, how: str) -> dict[str, Any]:
        """Return what is told of a peer that is gone; one that is only not heard of may be alive."""
        return {"how": how, **({"silent": True} if how == self._silence() else {})}

    def _read(self, peer: Peer) -> list[dict[str, Any]]:
        messages = peer.receive()
        if messages is None:
            self._drop(peer)
            self._gone(peer, "has gone: its connection was closed")
            return []
        return [message for message in messages if message["op"] != "beat"]

    def _drop(self, peer: Peer) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.sock)
        peer.sock.close()

    def _end(self) -> None:
        if self._ended:
            return
        self._closing = self._ended = True
        os.write(self._wake_write, b"x")
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join(5)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


class Head(_Watch):
    """The watch's side on the node where all meet.

    Args:
        on_word: Called with what members say and with `gone` (`token`, `how`, and `silent` where it may be alive) for
            those that are lost or have left.
        timeout_s: As above.
        admit: Asked about the facts of everyone who comes; the text is why they cannot come in.
        address: Where it listens; "" is everywhere, for which interface the others come through, only they know.
        token: Names this node's agent to whoever asks.
    """

    def __init__(self, *, on_word: OnWord, timeout_s: float, admit: Admit, address: str = "", token: str = "") -> None:
        super().__init__(on_word=on_word, timeout_s=timeout_s)
        self._admit = admit
        self._token = token
        self._peers: list[Peer] = []
        self._listener = _listener(address)
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's
        self.port: int = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ, self._listener)
        self._thread.start()

    def tell(self, op: str, **fields: Any) -> None:
        """Say something to every member."""
        with self._lock:
            for peer in self._peers:
                self._send(peer, op, **fields)

    def num_here(self) -> int:
        """Return how many members are connected and have not said farewell."""
        with self._lock:
            return sum(bool(peer.token) and not peer.left for peer in self._peers)

    def close(self) -> None:
        """Stop; members see their connection closed."""
        self._end()
        for peer in self._peers:
            peer.sock.close()
        self._listener.close()

    def _take(self, peer: Peer | socket.socket) -> None:
        if isinstance(peer, socket.socket):
            with contextlib.suppress(OSError):
                sock, _ = self._listener.accept()
                sock.setblocking(False)  # noqa: FBT003 - the standard library's
                joined = Peer(sock=sock, heard_s=time.monotonic())
                self._peers.append(joined)
                self._selector.register(sock, selectors.EVENT_READ, joined)
            return
        for message in self._read(peer):
            op = message.pop("op")
            if op == "hello" and isinstance(message.get("facts"), dict) and "token" in message["facts"]:
                self._answer(peer, message)
            elif op == "who":
                self._send(peer, "here", token=self._token)
            elif peer.token:
                peer.left = peer.left or op in ("leave", "done")
                self._spread(peer, "gone" if op == "leave" else op, {**message, "token": peer.token})

    def _answer(self, peer: Peer, message: Mapping[str, Any]) -> None:
        refusal = self._admit(message)
        if refusal is None:
            peer.token = message["facts"]["token"]
            self._send(peer, "welcome", time=time.time())
        else:
            self._send(peer, "refused", text=refusal)

    def _spread(self, source: Peer, op: str, message: Mapping[str, Any]) -> None:
        for peer in self._peers:
            if peer is not source and peer.token:
                self._send(peer, op, **message)
        self.on_word(op, message)

    def _gone(self, peer: Peer, how: str) -> None:
        self._peers.remove(peer)
        if peer.token and not peer.left:
            self._spread(peer, "gone", {"token": peer.token, **self._what(how)})

    def _beat(self) -> None:
        self.tell("beat")

    def _look(self, now: float) -> None:
        for peer in [each for each in self._peers if now - each.heard_s > self.timeout_s]:
            peer.send("lost")  # it may only have stood still, and must not take this node for the one that is gone
            self._drop(peer)
            self._gone(peer, self._silence())

    def _connected(self) -> list[Peer]:
        return list(self._peers)


class Member(_Watch):
    """The watch's side on every other node.

    Args:
        on_word: Called with what others say and with `head_gone` (`how`, and `silent` where it may be alive).
        timeout_s: As above.
        address: The head's address.
        port: Its watch's port.
        hello: What this node tells when it comes, with its `facts`.
    """

    def __init__(self, *, on_word: OnWord, timeout_s: float, address: str, port: int, hello: Mapping[str, Any]) -> None:
        super().__init__(on_word=on_word, timeout_s=timeout_s)
        sock = socket.create_connection((address, port), timeout_s)
        self._head = Peer(sock=sock, heard_s=time.monotonic())
        self.refusal: str | None = None
        self.head_ahead_s = 0.0
        """By how much the head's clock is ahead of this node's."""
        self._meet(hello)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's
        self._selector.register(sock, selectors.EVENT_READ, self._head)
        self._thread.start()

    def _meet(self, hello: Mapping[str, Any]) -> None:
        asked_s = time.time()
        self._head.send("hello", **hello)
        answers: list[dict[str, Any]] = []
        while not answers:
            received = self._head.receive()
            if received is None:
                raise OSError("the head closed the connection")
            answers = [message for message in received if message["op"] in ("welcome", "refused")]
        answer = answers[0]
        if answer["op"] == "refused":
            self.refusal = answer["text"]
        else:
            self.head_ahead_s = answer["time"] - (asked_s + time.time()) / 2

    def tell(self, op: str, **fields: Any) -> None:
        """Say something to the head, which passes it on to every other member."""
        with self._lock:
            self._send(self._head, op, **fields)

    def close(self) -> None:
        """Stop."""
        self._end()
        self._head.sock.close()

    def _take(self, peer: Peer | socket.socket) -> None:
        assert isinstance(peer, Peer)
        for message in self._read(peer):
            op = message.pop("op")
            if op == "lost":
                self._closing = True
                self.on_word(
                    "head_gone", {"how": f"has not heard of this one for {self.timeout_s:g} s", "silent": True}
                )
                return
            self.on_word(op, message)

    def _gone(self, peer: Peer, how: str) -> None:
        assert peer is self._head
        self._closing = True
        self.on_word("head_gone", self._what(how))

    def _beat(self) -> None:
        self._send(self._head, "beat")

    def _look(self, now: float) -> None:
        if not self._closing and now - self._head.heard_s > self.timeout_s:
            self._drop(self._head)  # it may still hear, and then learns of it at once
            self._gone(self._head, self._silence())

    def _connected(self) -> list[Peer]:
        return [self._head]


def answers_as(token: str, address: str, port: int) -> bool:
    """Whether a head's watch answers there, and is this one: a port that was its own may be another program's now."""
    try:
        with socket.create_connection((address, port), _ASK_S) as sock:
            peer = Peer(sock=sock, heard_s=time.monotonic())
            peer.send("who")
            while (received := peer.receive()) is not None and time.monotonic() < peer.heard_s + _ASK_S:
                for message in received:
                    if message["op"] == "here":
                        return bool(message.get("token") == token)
    except OSError:
        pass
    return False


def _listener(address: str) -> socket.socket:
    if not address and socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)
