"""The agent of this node: torch's elastic agent, in a process forked from the fork server.

Rendezvous, ranks, the environment of the workers, restarts: all torch's own code. Two of its parts are
exchanged for ours, through the places torch has for that or one module attribute: how a worker is started
(`workers.starter`) and the rendezvous, on a single node (`rendezvous`) or around torch's own (`nodes`).
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING

from distrain.errors import EXIT_PREEMPTED, LaunchError, PreemptedError
from distrain.launcher.protocol import AgentJob, Channel

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

    from distrain.launcher.joining import Joining

__all__ = ["main"]


Handler = Callable[[int, FrameType | None], None]


def main(job: AgentJob, channel: Channel, blocked: Iterable[signal.Signals]) -> None:
    """Run the agent until its workers are done; tell the supervisor how it ended and exit.

    Args:
        job: What to launch.
        channel: The connection to the fork server, which passes reports on to the supervisor.
        blocked: The signals that this process was forked with blocked, until it can bear them.

    Raises:
        SystemExit: Always on a single node: 0 when every worker ended well, else 1, or 128+S after signal S. Among
            several nodes the process ends with that code at once: threads may wait for a store that is gone.
    """
    code = _run(job, channel, blocked)
    if job.meeting is not None:
        os._exit(code)
    raise SystemExit(code)


def _once(handler: Handler) -> Handler:
    """Return a handler that hears the first signal alone.

    A scheduler sends its signal to this process as well as to the supervisor, which passes it on. Torch's handler
    raises; struck again while the ranks save their state, the agent would not wait for them. Whoever means it
    the second time tells the supervisor, which ends everything.
    """
    came: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            handler(number, frame)

    return hear


def _run(job: AgentJob, channel: Channel, blocked: Iterable[signal.Signals]) -> int:
    os.setsid()
    os.environ.clear()
    os.environ.update(job.env)

    from torch.distributed.elastic.agent.server import local_elastic_agent
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from distrain.launcher.ended_elsewhere import EndedElsewhereError
    from distrain.launcher.joining import Joining, is_ours
    from distrain.launcher.nodes import RestartsSpentError
    from distrain.launcher.rank_logs import RunDirLogs
    from distrain.launcher.rendezvous import settings
    from distrain.launcher.torch_releases import launch_config
    from distrain.launcher.workers import NotRetriedError, duplicate_filters, starter

    handler = _once(api._terminate_process_handler)  # noqa: SLF001 - each round of workers installs it anew, by that name
    vars(api)["_terminate_process_handler"] = handler
    for name in job.signals:
        signal.signal(signal.Signals[name], handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    logs = RunDirLogs(job)
    joining = Joining(job, channel, logs) if is_ours(job.meeting) else None
    assert hasattr(local_elastic_agent, "start_processes"), "torch's elastic agent starts its workers another way now"
    local_elastic_agent.start_processes = joining.starter() if joining else starter(channel, job, logs)
    fields = {
        "nproc_per_node": job.nproc,
        "role": job.role,
        "max_restarts": job.max_restarts,
        "monitor_interval": job.monitor_interval_s,
        "signals_to_handle": ",".join(job.signals),
        "virtual_local_rank": job.virtual_local_rank,
        "logs_specs": logs,
        "shutdown_timeout": job.grace_s,
        "event_log_handler": job.passed.get("event_log_handler") or "null",
        **duplicate_filters(job),
        **(joining.settings() if joining else settings(job)),
    }
    try:
        config = launch_config(fields)
        is_preempted = _is_preempted(lambda: _launched(config, job, joining), joining)
        for name in job.signals:
            # This node's ranks have ended well; leaving now would take the place to meet from those that still save.
            # The supervisor, which gets the signal too, limits the wait.
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        if joining:
            joining.succeeded()
    except (ChildFailedError, NotRetriedError, RestartsSpentError) as error:
        if joining:
            joining.failed()
        first = error.get_first_failure()[0] if isinstance(error, ChildFailedError) else None
        channel.send("report", outcome="failed", first=first)
        return 1
    except SignalException as error:
        if joining:
            joining.left(int(error.sigval))
        channel.send("report", outcome="signalled", signal=int(error.sigval))
        return 128 + int(error.sigval)
    except LaunchError as error:
        if joining:
            joining.left(error)
        elsewhere = error if isinstance(error, EndedElsewhereError) else EndedElsewhereError(str(error))
        channel.send("report", **elsewhere.as_report())
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor must hear of it
        if joining:
            joining.left(error)
        channel.send(
            "report", outcome="broken", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc()
        )
        return 1
    channel.send("report", outcome="preempted" if is_preempted else "succeeded")
    return EXIT_PREEMPTED if is_preempted else 0


def _launched(config: LaunchConfig, job: AgentJob, joining: Joining | None) -> None:
    """Have torch's agent run the workers; where it fails of the end of another node, that is the error."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    from distrain.launcher.nodes import NoPartError

    try:
        launch_agent(config, job.command[0], job.command[1:])
    except NoPartError as error:
        assert joining is not None
        joining.say(str(error))
    except (ChildFailedError, LaunchError, SignalException):
        raise
    except Exception:
        if joining is not None:
            joining.explain()
        raise


def _is_preempted(launch: Callable[[], object], joining: Joining | None) -> bool:
    """Run the workers to their good end; return whether they were asked to end and have saved their state.

    Ranks of other nodes may still be saving when this one's have, also where it was this one that got the signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    try:
        launch()
    except PreemptedError:
        return True
    except SignalException:
        if joining is None or not joining.is_preempted:
            raise
        return True
    return False
