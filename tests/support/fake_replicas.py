"""A stand-in for what torch_xla can only do on a TPU: several replicas. They are real processes that reduce over gloo.

A process on a CPU has one XLA device, and torch_xla takes itself for a world of one whatever its launcher says. After
`install` it has the rank and the size that the launcher says, and `xm.all_reduce` goes over the default process group.
`install_chips` has `torch_xla.launch` start a process for each of some chips as well. All else is the real torch_xla's,
`xm.optimizer_step` and `xm.reduce_gradients` included.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.namespaces import Host
from tests.support.processes import REPOSITORY, wait_until

__all__ = ["install", "install_chips", "metadata", "site", "variables"]

SITE = """
import os, sys

if "FAKE_CHIPS" in os.environ:
    if "launch" in sys.orig_argv:
        from distrain.plan import detect

        chips = os.environ["FAKE_CHIPS"]
        detect.visible_chips = lambda environ, root=None: (int(chips), f"{chips} fake chips")
        detect.has_tpu_chips = lambda root=None: True
    elif any("xla_runner" in word or "spawn_main" in word for word in sys.orig_argv):
        os.environ["PJRT_DEVICE"] = "CPU"
        from tests.support import fake_replicas

        fake_replicas.install_chips()
"""

METADATA = """
import http.server, json, sys

attributes = json.loads(sys.argv[1])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = attributes[self.path.removeprefix("/computeMetadata/v1/instance/attributes/")].encode()
        self.send_response(200 if self.headers["Metadata-Flavor"] == "Google" else 403)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", 80), Handler).serve_forever()
"""

MEETING_S = 60

reductions: list[int] = []
"""How many tensors each reduction so far had."""


def install() -> None:
    """Put the stand-ins in their places; reductions need the default process group, with gloo."""
    import torch_xla.core.xla_model as xm
    import torch_xla.runtime as xr

    xr.world_size = lambda: int(os.environ["WORLD_SIZE"])
    xr.global_ordinal = lambda: int(os.environ["RANK"])
    xm.all_reduce = all_reduce


def install_chips() -> None:
    """Have `torch_xla.launch` take this host for a TPU's with `FAKE_CHIPS` chips, in the runner and in each rank.

    torch_xla itself starts the processes and works out the topology from the variables of the TPU's runtime. Then the
    device is a CPU after all, and what the TPU would have found, its number among all, is worked out here: not in the
    order of the hosts, as torch_xla's documentation says of a TPU.
    """
    import torch_xla
    from torch_xla import runtime
    from torch_xla._internal import pjrt, tpu

    def global_ordinal() -> int:
        _meet()
        return runtime.world_size() - 1 - int(os.environ["CLOUD_TPU_TASK_ID"])

    install()
    torch_xla._XLAC._xla_get_device_ordinal = lambda device: global_ordinal()
    runtime.world_size = lambda: tpu.process_bounds_size() or 1
    runtime.global_ordinal = global_ordinal
    tpu.num_available_chips = lambda: int(os.environ["FAKE_CHIPS"])
    pjrt.runtime = types.SimpleNamespace(**{**vars(runtime), "device_type": lambda: "TPU"})


@functools.lru_cache(maxsize=1)
def _meet() -> None:
    """Wait until the processes of all chips are there, where torch_xla's topology says, as a TPU's runtime does."""
    places = [each.rpartition(":") for each in os.environ["TPU_PROCESS_ADDRESSES"].split(",")]
    on_this_host = all(host == "localhost" for host, _, _ in places)
    family = socket.AF_UNIX if on_this_host else socket.AF_INET

    def address(host: str, port: str) -> Any:  # other launches on this host have the same ports
        return f"\0fake-tpu-{os.environ['DISTRAIN_LAUNCH_ID']}-{port}" if on_this_host else (host, int(port))

    def visit(host: str, port: str) -> bool:
        with socket.socket(family) as visitor:
            return visitor.connect_ex(address(host, port)) == 0

    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address("", os.environ["TPU_PROCESS_PORT"]))
        door.listen(len(places))
        door.settimeout(MEETING_S)
        for host, _, port in places:
            wait_until(functools.partial(visit, host, port), MEETING_S, what=f"the chip at {host}:{port}")
        for _ in places:
            door.accept()[0].close()


def site(folder: Path) -> dict[str, str | None]:
    """Write what every interpreter of a launch on fake chips imports at its start; return the variables for it.

    Args:
        folder: Where; it is put on the path.
    """
    (folder / "sitecustomize.py").write_text(SITE)
    return {"PYTHONPATH": f"{folder}:{REPOSITORY}", "PJRT_DEVICE": None}


def variables(hosts: Sequence[str], worker_id: int, chips: int) -> dict[str, str | None]:
    """Return the variables that GKE sets on one host of a slice.

    Args:
        hosts: All hosts, in order.
        worker_id: Which one this is.
        chips: How many each has.
    """
    return {
        "FAKE_CHIPS": str(chips),
        "TPU_SKIP_MDS_QUERY": "true",
        "TPU_ACCELERATOR_TYPE": f"v4-{2 * chips * len(hosts)}",
        "TPU_HOST_BOUNDS": f"1,1,{len(hosts)}",
        "TPU_CHIPS_PER_HOST_BOUNDS": f"{chips},1,1",
        "TPU_WORKER_ID": str(worker_id),
        "TPU_WORKER_HOSTNAMES": ",".join(hosts),
    }


@contextlib.contextmanager
def metadata(hosts: Sequence[Host], chips: int) -> Iterator[None]:
    """Serve on each host what Google's metadata server says on a Cloud TPU VM, where torch_xla and distrain ask.

    Args:
        hosts: The hosts of a slice, in order; `metadata.google.internal` leads each to its loopback interface.
        chips: How many each has.
    """
    endpoints = ",".join(f"unknown:unknown:{host.address}" for host in hosts)
    servers = []
    try:
        for worker_id, host in enumerate(hosts):
            bounds = f"TPU_PROCESS_BOUNDS: '1,1,{len(hosts)}'\nTPU_CHIPS_PER_PROCESS_BOUNDS: '{chips},1,1'\n"
            says = f"ACCELERATOR_TYPE: 'v4-{2 * chips * len(hosts)}'\n{bounds}WORKER_ID: '{worker_id}'\n"
            attributes = {"tpu-env": says, "worker-network-endpoints": endpoints}
            servers.append(subprocess.Popen([*host.enter, sys.executable, "-c", METADATA, json.dumps(attributes)]))
        for host in hosts:
            wait_until(lambda at=host: any(each.endswith(":80") for each in at.listening()), 60, what="the metadata")
        yield
    finally:
        for server in servers:
            server.kill()
            server.wait()


def all_reduce(  # noqa: PLR0917  # the order of the real one
    reduce_type: str,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    scale: float = 1.0,
    groups: Any = None,
    cctx: Any = None,
    pin_layout: bool = True,
) -> torch.Tensor | None:
    """As `xm.all_reduce`: a tensor's sum is returned, those of a list are written into its tensors."""
    assert (reduce_type, groups, cctx) == ("sum", None, None)
    tensors = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    reductions.append(len(tensors))
    totals = []
    for tensor in tensors:
        total = tensor.detach().cpu()
        dist.all_reduce(total)
        totals.append((total * scale).to(tensor.device, tensor.dtype))
    if isinstance(inputs, torch.Tensor):
        return totals[0]
    for tensor, total in zip(tensors, totals, strict=True):
        tensor.copy_(total)
    return None
