"""What is known before the nodes meet."""

from __future__ import annotations

import os
import socket

import pytest

from distrain.errors import LaunchError, UsageError
from distrain.launcher import precheck
from distrain.plan.meeting import Meeting


def meeting(**fields) -> Meeting:
    defaults = {
        "min_nodes": 2,
        "max_nodes": 2,
        "node_rank": 0,
        "backend": "c10d",
        "host": "127.0.0.1",
        "port": 0,
        "run_id": "none",
    }
    return Meeting(**(defaults | fields))


def open_door(**fields):
    return precheck.open_door(meeting(**fields), pytest.fail)


@pytest.fixture
def taken():
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def close(door) -> None:
    door.tcp.close()
    door.sign.close()


def test_a_name_that_does_not_resolve():
    with pytest.raises(UsageError, match=r"'no\.such\.host\.invalid' does not resolve on "):
        open_door(host="no.such.host.invalid", node_rank=1)


def test_a_name_that_does_not_resolve_is_told_while_it_is_asked_for_again():
    said = []
    where = meeting(host="no.such.host.invalid", node_rank=1)
    with pytest.raises(UsageError, match=r"'no\.such\.host\.invalid' does not resolve on "):
        precheck.open_door(where, pytest.fail, say=said.append, patience_s=1.2)
    (line,) = said
    assert line.startswith("node 1: 'no.such.host.invalid', where the nodes are to meet, does not resolve on ")
    assert line.endswith("; trying for 1.2 s")


@pytest.mark.parametrize("error", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_a_name_is_taken_once_a_fake_resolver_has_it(monkeypatch, error):
    answers = [socket.gaierror(error, "not yet")] * 2
    real = socket.getaddrinfo

    def fake(host, *more, **options):
        if answers:
            raise answers.pop()
        return real("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    where = meeting(host="late", node_rank=1)
    assert precheck.await_name(where, pytest.fail, patience_s=60) == ["127.0.0.1"]
    assert not answers


def test_what_can_never_be_a_name_is_not_asked_for_again():
    with pytest.raises(UsageError, match=r"'a\.\.b' does not resolve on .*not a valid name"):
        precheck.await_name(meeting(host="a..b"), pytest.fail, patience_s=60)


def test_how_long_a_name_is_asked_for():
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert precheck.name_patience_s(meeting(), {}) == precheck.NAME_PATIENCE_S
    assert precheck.name_patience_s(meeting(), pod) == precheck.JOIN_TIMEOUT_S
    assert precheck.name_patience_s(meeting(conf={"join_timeout": "7"}), {}) == 7


def test_the_port_is_held_and_nobody_answers_there_yet():
    door = open_door(port=free_port())
    port = door.tcp.getsockname()[1]
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("", port))
        with pytest.raises(UsageError, match="taken by another launch of distrain"):
            open_door(port=port)
        assert open_door(port=port, node_rank=None) is None
    finally:
        close(door)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("backend", ["c10d", "static"])
def test_a_taken_port_is_told_with_its_owner(taken, backend, nodes):
    with pytest.raises(UsageError, match=rf"port {taken} on .* is taken by pid {os.getpid()} \("):
        open_door(port=taken, backend=backend, min_nodes=nodes, max_nodes=nodes)


def test_where_nodes_meet_at_the_loopback_interface_the_port_is_held_there_only():
    port = free_port()
    for host, address in (("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")):
        door = open_door(host=host, port=port)
        assert door.tcp.getsockname()[0] == address
        close(door)
    assert precheck.loopback_of(meeting(host="::1")) == "::1"
    assert precheck.loopback_of(meeting(host=socket.gethostname())) == ""


def test_what_is_hardly_meant_is_said():
    said = []
    door = precheck.open_door(meeting(host="192.0.2.1", port=free_port()), said.append)
    close(door)
    host = socket.gethostname()
    (text,) = said
    assert f"because --node-rank is 0 here, and 192.0.2.1 is no address of this host ({host})" in text
    said.clear()
    assert precheck.open_door(meeting(port=29400, min_nodes=1, max_nodes=3, node_rank=1), said.append) is None
    assert said == ["the nodes meet at 127.0.0.1:29400, so only launches on this host can join"]
    said.clear()
    assert precheck.open_door(meeting(host="192.0.2.1", port=29400, min_nodes=1, max_nodes=1), said.append) is None
    assert said == [
        f"192.0.2.1 is no address of this host ({host}), where all ranks are; they meet at 127.0.0.1 instead"
    ]


def test_the_other_nodes_open_nothing(taken):
    assert open_door(port=taken, node_rank=1) is None
    assert open_door(port=taken, conf={"is_host": "false"}) is None
    assert open_door(port=taken, backend="etcd-v2") is None
    assert open_door(port=0, min_nodes=1, max_nodes=1) is None


def test_who_opens_the_place():
    assert precheck.is_host(meeting(node_rank=0), ["192.0.2.1"])
    assert not precheck.is_host(meeting(node_rank=1), ["127.0.0.1"])
    assert precheck.is_host(meeting(node_rank=1, conf={"is_host": "True"}), ["192.0.2.1"])
    assert precheck.is_host(meeting(node_rank=None), ["127.0.0.1"])
    assert not precheck.is_host(meeting(node_rank=None), ["192.0.2.1"])


def test_somebody_answers(taken):
    assert precheck.await_answer(meeting(port=taken), print, lambda: None) == ("127.0.0.1", "127.0.0.1")


def test_nobody_answers():
    where = meeting(port=free_port(), node_rank=1, conf={"join_timeout": "0.3"})
    with pytest.raises(LaunchError, match=r"node 1: nothing has answered at .* for 0.3 s \(connection refused\)"):
        precheck.await_answer(where, print, lambda: None)


def test_a_timeout_that_is_no_number():
    with pytest.raises(UsageError, match="join_timeout is 'soon'"):
        precheck.join_timeout_s(meeting(conf={"join_timeout": "soon"}))


def test_the_closed_connections_of_a_run_do_not_keep_the_next_from_the_port():
    from distrain.launcher.meeting_place import _let_next_run_have_port

    port = free_port()
    for _ in range(2):
        door = open_door(port=port)
        _let_next_run_have_port(door.tcp.fileno())
        door.tcp.listen()
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = door.tcp.accept()
            accepted.close()  # first, so that the connection lingers on this side
        close(door)
