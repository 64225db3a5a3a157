"""Where several nodes meet: from `--rdzv-endpoint`, `--master-addr` and `--master-port`, or the scheduler."""

from __future__ import annotations

import re

from distrain.errors import UsageError
from distrain.plan.draft import Draft
from distrain.plan.sources import Given, is_stronger, whole_number

__all__ = ["C10D_PORT", "STATIC_PORT", "resolve_endpoint"]

C10D_PORT = 29400
STATIC_PORT = 29500


def resolve_endpoint(draft: Draft, backend: str, *, alone: bool) -> tuple[str, int]:
    """Return host and port, and note them.

    An endpoint says both, an address and a port one each; each half comes from the stronger source, and between equals
    from the endpoint, as torchrun has it.

    Args:
        draft: The plan in the making.
        backend: The rendezvous backend.
        alone: Whether there is one node only.

    Raises:
        UsageError: A value is not valid, or several nodes have no place to meet.
    """
    found, placement = draft.found, draft.placement
    endpoint, address, port_said = (found.get(each) for each in ("rdzv_endpoint", "master_addr", "master_port"))
    port = STATIC_PORT if port_said is None else _port(port_said)
    if endpoint is not None:
        host, its_port = _host_and_port(endpoint, STATIC_PORT if backend == "static" else C10D_PORT)
        winners = [each for each in (address, port_said) if each is not None and is_stronger(each, endpoint)]
        for each in (address, port_said):
            if each is not None and each not in winners and each.text not in (host, str(its_port)):
                draft.warnings.append(f"{each.where} ({each.text}) is ignored: {endpoint.where} says where nodes meet")
        if not winners:
            return host, its_port
        names = " and ".join(each.where for each in winners)
        draft.warnings.append(f"{endpoint.where} ({endpoint.text}) gives way to {names}")
        host = address.text if address in winners and address is not None else host
        port = port if port_said in winners else its_port
        draft.note("rdzv_endpoint", _joined(host, port), winners[0].origin, names)
        return host, port
    if address is not None or (alone and port_said is not None):
        host = "127.0.0.1" if address is None else address.text
        said = [each for each in (address, port_said) if each is not None]
        draft.note("rdzv_endpoint", _joined(host, port), said[0].origin, " and ".join(each.where for each in said))
        return host, port
    if alone:
        return "127.0.0.1", 0
    if placement is not None and placement.head is not None:
        port = placement.port if port_said is None else port
        draft.note("rdzv_endpoint", _joined(placement.head, port), "detected", placement.detail)
        return placement.head, port
    raise UsageError(
        "several nodes need a place to meet: give --rdzv-endpoint HOST:PORT, an address of one of the nodes and a free "
        "port there, the same on all of them."
    )


def _port(said: Given) -> int:
    port = whole_number(said, "a port", least=0)
    if port > 65535:
        raise UsageError(f"{said.where}: got {port}; a port is at most 65535.")
    return port


def _host_and_port(said: Given, default_port: int) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d+))?", said.text.strip())
    if match is None or int(match[3] or 0) > 65535:
        raise UsageError(f"{said.where}: got {said.text!r}; give HOST:PORT, such as node01:29400.")
    return match[1] or match[2], int(match[3]) if match[3] else default_port


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
