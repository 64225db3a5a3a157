"""The hosts of a TPU slice, several of them in a pod, from where torch_xla has them: variables, or the metadata server.

GKE sets variables, and `TPU_SKIP_MDS_QUERY` for torch_xla to go by them. A Cloud TPU VM has none, and its metadata
server knows the slice. It is asked on machines with TPU chips alone, where torch_xla asks it when it is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from distrain.errors import UsageError
from distrain.plan import detect
from distrain.plan.cluster.placement import Placement, number

__all__ = ["placement", "this_host_alone"]

METADATA = "metadata.google.internal"
ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
_ANSWER_S = 2.0

HOSTS, WORKER, SKIP = "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "TPU_SKIP_MDS_QUERY"


def placement(environ: Mapping[str, str], ask: Callable[[str], str | None] | None = None) -> Placement | None:
    """Return the place of a host in its slice, None where there is no TPU.

    Args:
        environ: The environment.
        ask: Returns an attribute of the metadata server, None without one; `metadata` by default.

    Raises:
        UsageError: What is known of the slice contradicts itself, or does not say which host this is.
    """
    hosts = _named(environ)
    if hosts:
        if not any(environ.get(name) for name in (WORKER, "CLOUD_TPU_TASK_ID")):
            if len(hosts) == 1:
                return None
            raise UsageError(
                f"{HOSTS} names {len(hosts)} hosts and {WORKER} is not set, so it is not known which one this is. Set "
                f"it to this host's number, 0 to {len(hosts) - 1}; both are set by the TPU's runtime."
            )
        rank = number(environ, WORKER, "CLOUD_TPU_TASK_ID")
        name = f"{WORKER} is {rank} and {HOSTS} names"
    elif not _goes_by_metadata(environ):
        return None
    else:
        found = _from_metadata(ask or metadata)
        if found is None:
            return None
        hosts, rank = found
        name = f"the TPU's metadata say that this is host {rank} and name"
    if rank >= len(hosts):
        raise UsageError(f"{name} {len(hosts)} host{'s' * (len(hosts) != 1)}.")
    if len(set(hosts)) < len(hosts):
        twice = next(host for host in hosts if hosts.count(host) > 1)
        raise UsageError(f"{HOSTS} names {twice} more than once; each host of a slice runs one launch.")
    return Placement(
        scheduler="TPU",
        detail=f"TPU host {rank} of {len(hosts)}",
        nnodes=len(hosts),
        node_rank=rank,
        head=hosts[0],
        hosts=hosts,
    )


def this_host_alone(environ: Mapping[str, str], ask: Callable[[str], str | None] | None = None) -> dict[str, str]:
    """Return the variables by which torch_xla takes this host for a whole slice; none where it is one, or is no TPU.

    torch_xla reads the bounds of the slice and of a host's chips, and makes of them a place for each process.

    Args:
        environ: The environment. Bounds of processes in it are the user's own arrangement, and stay.
        ask: As for `placement`.
    """
    if environ.get("TPU_PROCESS_BOUNDS"):
        return {}
    if len(_named(environ)) > 1:
        given = {}
    elif _goes_by_metadata(environ):
        ask = ask or metadata
        endpoints = ask("worker-network-endpoints") or ""
        lines = re.findall(r"^(\w+):\s*['\"]?([^'\"\n]*)", ask("tpu-env") or "", re.MULTILINE)
        says = dict(lines)
        if endpoints.count(",") == 0 or "ACCELERATOR_TYPE" not in says:
            return {}
        chips = says.get("TPU_CHIPS_PER_PROCESS_BOUNDS") or says.get("CHIPS_PER_HOST_BOUNDS", "")
        given = {"TPU_ACCELERATOR_TYPE": says["ACCELERATOR_TYPE"], "TPU_CHIPS_PER_HOST_BOUNDS": chips}
    else:
        return {}
    return {**given, SKIP: "true", HOSTS: "localhost", WORKER: "0", "TPU_HOST_BOUNDS": "1,1,1"}


def _named(environ: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(host.strip() for host in environ.get(HOSTS, "").split(",") if host.strip())


def _goes_by_metadata(environ: Mapping[str, str]) -> bool:
    of_tpu = environ.get("PJRT_DEVICE", "TPU").upper() == "TPU"
    return of_tpu and not environ.get(SKIP) and detect.has_tpu_chips()


def _from_metadata(ask: Callable[[str], str | None]) -> tuple[tuple[str, ...], int] | None:
    """Return the hosts' addresses and which one this is, as torch_xla reads them: `name:id:address,…`, and YAML."""
    slice_says, endpoints = ask("tpu-env"), ask("worker-network-endpoints")
    worker = re.search(r"^WORKER_ID:\s*['\"]?(\d+)", slice_says or "", re.MULTILINE)
    if worker is None or not endpoints:
        return None
    fields = [each.split(":") for each in endpoints.strip().split(",")]
    if any(len(each) < 3 for each in fields):
        raise UsageError(f"the TPU's metadata name its hosts as {endpoints!r}; they are written as name:id:address.")
    return tuple(each[2] for each in fields), int(worker[1])


def metadata(attribute: str) -> str | None:
    """Return an attribute of this machine, as Google's metadata server has it; None where there is none.

    Args:
        attribute: Its name.
    """
    import http.client

    connection = http.client.HTTPConnection(METADATA, timeout=_ANSWER_S)
    try:
        connection.request("GET", ATTRIBUTES + attribute, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else None
    except (OSError, http.client.HTTPException, UnicodeDecodeError):
        return None
    finally:
        connection.close()
