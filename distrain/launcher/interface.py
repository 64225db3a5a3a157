"""Which network interface has an address, for libraries that want to be told."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping

__all__ = ["gloo_variables", "interface_of", "is_loopback", "is_own_everywhere"]

_SIOCGIFADDR = 0x8915


def is_loopback(host: str) -> bool:
    """Whether a host, as it is written, is everybody's own loopback interface. Other names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_everywhere(host: str) -> bool:
    """Whether a host, as it is written, leads each host to itself: its loopback interface, or all it has."""
    return is_loopback(host) or host in ("0.0.0.0", "::")  # noqa: S104 - compared only


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address; None when there is none (or not on Linux)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def gloo_variables(environ: Mapping[str, str], address: str) -> dict[str, str]:
    """Return what gloo has to be told where the host's name leads elsewhere than to the address the others use.

    It listens where the host name leads. On a host whose name leads to the loopback interface (`127.0.1.1 node01` in
    /etc/hosts, as Debian writes it) the other nodes would not reach it; where all launches are on one host and meet on
    its loopback interface, it would listen to the world. Where the user names an interface, nothing is added.

    Args:
        environ: The environment of the workers.
        address: The address under which the other nodes reach this one.
    """
    if "GLOO_SOCKET_IFNAME" in environ:
        return {}
    with contextlib.suppress(OSError, ValueError):
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        if is_loopback(address) == all(is_loopback(str(entry[4][0])) for entry in found):
            return {}
    name = interface_of(address)
    return {} if name is None else {"GLOO_SOCKET_IFNAME": name}
