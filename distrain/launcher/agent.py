"""The agent of this node: torch's elastic agent, in a process forked from the fork server.

Rendezvous, ranks, the environment of the workers, restarts: all torch's own code. Two of its parts are
exchanged for ours, through the places torch has for that or one module attribute: how a worker is started
(`workers.starter`) and, on a single node, the rendezvous.
"""

from __future__ import annotations

import os
import signal
import traceback

from distrain.launcher.protocol import AgentJob, Channel

__all__ = ["main"]


def main(job: AgentJob, channel: Channel) -> None:
    """Run the agent until its workers are done; tell the supervisor how it ended and exit.

    Args:
        job: What to launch.
        channel: The connection to the fork server, which passes reports on to the supervisor.

    Raises:
        SystemExit: Always: 0 when every worker ended well, else 1, or 128+S after signal S.
    """
    os.setsid()
    os.environ.clear()
    os.environ.update(job.env)

    from torch.distributed.elastic.agent.server import local_elastic_agent
    from torch.distributed.elastic.multiprocessing.api import SignalException, _terminate_process_handler
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    from distrain.launcher import rendezvous
    from distrain.launcher.workers import RunDirLogs, starter

    for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(sig, _terminate_process_handler)
    rendezvous_handler_registry.register(rendezvous.BACKEND, rendezvous.create)
    logs = RunDirLogs(job)
    assert hasattr(local_elastic_agent, "start_processes"), "torch's elastic agent starts its workers another way now"
    local_elastic_agent.start_processes = starter(channel, job, logs)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.nproc,
        run_id=job.run_id,
        role="default",
        rdzv_backend=rendezvous.BACKEND,
        rdzv_endpoint="127.0.0.1",
        max_restarts=job.max_restarts,
        monitor_interval=0.1,
        logs_specs=logs,
        shutdown_timeout=job.grace_s,
    )
    try:
        launch_agent(config, job.command[0], job.command[1:])
    except ChildFailedError as error:
        first, _ = error.get_first_failure()
        channel.send("report", outcome="failed", first=first)
        raise SystemExit(1) from None
    except SignalException as error:
        channel.send("report", outcome="signalled", signal=int(error.sigval))
        raise SystemExit(128 + error.sigval) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor must hear of it
        channel.send(
            "report", outcome="broken", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc()
        )
        raise SystemExit(1) from None
    channel.send("report", outcome="succeeded")
    raise SystemExit(0)
