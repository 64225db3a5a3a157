"""Every option of `distrain launch`: its name, its spellings, the variables that set it, what the help says.

One table, read by the command line, by the profiles and by the variables, so that none of them can know an option
that the others do not. torchrun's options are all here, under torchrun's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GROUPS", "OFF", "ON", "OPTIONS", "Option", "option"]

Kind = Literal["text", "flag"]
"""`text` takes a value, `flag` takes none."""

ON = ("1", "true", "yes", "on")
OFF = ("0", "false", "no", "off", "")
"""How a flag is set in a variable or a profile."""

GROUPS = {
    "start": "what is started",
    "restart": "restarts and the end",
    "output": "what is shown and kept",
    "nodes": "several nodes",
    "plan": "where settings come from",
    "torchrun": "torchrun's others",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option.

    Args:
        name: Its name in plans and profiles; `--some-name` and `--some_name` are its first spellings.
        help: One line.
        group: One of `GROUPS`.
        metavar: What its value looks like.
        kind: Whether it takes a value.
        flags: Further spellings.
        hidden: Whether the help leaves it out.
        pet: torchrun's name of it, from which the variable `PET_<NAME>` is made; None where torchrun has none.
        torchs: A further variable, of torch's own; it is the weakest.
        choices: The only values it takes, if they are few.
        in_profile: Whether a profile may set it.
        negates: For a flag that switches something off: the name of the setting that it makes false.
    """

    name: str
    help: str
    group: str
    metavar: str = ""
    kind: Kind = "text"
    flags: tuple[str, ...] = ()
    hidden: bool = False
    pet: str | None = None
    torchs: str | None = None
    choices: tuple[str, ...] = ()
    in_profile: bool = True
    negates: str | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way to write it on the command line, the one that messages use first."""
        words = [f"--{self.name.replace('_', '-')}", *self.flags]
        found: list[str] = []
        for word in words:
            found.append(word)
            if word.startswith("--") and "-" in word[2:]:
                found.append(f"--{word[2:].replace('-', '_')}")
        return tuple(dict.fromkeys(found))

    @property
    def flag(self) -> str:
        """The spelling that messages use."""
        return self.spellings[0]

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it, the stronger first."""
        names = [f"DISTRAIN_{key.upper()}" for key in self.keys]
        if self.pet is not None:
            names.append(f"PET_{self.pet.upper()}")
        if self.torchs is not None:
            names.append(self.torchs)
        return tuple(names)

    @property
    def is_torchruns(self) -> bool:
        """Whether torchrun has it; of some it takes no variable."""
        return self.pet is not None or self.group == "torchrun"

    @property
    def keys(self) -> tuple[str, ...]:
        """Its names in a profile: its own, and torchrun's."""
        longs = [word[2:].replace("-", "_") for word in self.flags if word.startswith("--")]
        return tuple(dict.fromkeys([self.name, *longs, *([self.pet] if self.pet else [])]))


OPTIONS: tuple[Option, ...] = (
    Option(
        name="nproc",
        flags=("--nproc-per-node",),
        pet="nproc_per_node",
        metavar="N|auto|cpu|gpu",
        group="start",
        help="processes on each node; default: one per visible accelerator, one without",
    ),
    Option(
        name="device",
        metavar="auto|cpu|cuda|xla",
        group="start",
        help="what the processes compute on; default: auto",
    ),
    Option(
        name="xla_spmd",
        kind="flag",
        group="start",
        help="on xla: one process computes on all devices, each batch is divided over them",
    ),
    Option(
        name="module",
        kind="flag",
        flags=("-m",),
        pet="module",
        group="start",
        in_profile=False,
        help="the script is a module's name, as for python -m",
    ),
    Option(
        name="no_python",
        kind="flag",
        pet="no_python",
        group="start",
        in_profile=False,
        help="the script is any command, started as it is",
    ),
    Option(
        name="no_fork_server",
        kind="flag",
        negates="fork_server",
        group="start",
        help="start a plain interpreter for each rank, for programs that cannot be forked",
    ),
    Option(
        name="smoke",
        kind="flag",
        group="start",
        in_profile=False,
        help="two CPU ranks, a few iterations, then checks of gradients, weights, data and checkpoint",
    ),
    Option(
        name="max_restarts",
        pet="max_restarts",
        metavar="N",
        group="restart",
        help="how often a failed group of processes is started again; default: 0",
    ),
    Option(
        name="retry",
        metavar="auto|always",
        choices=("auto", "always"),
        group="restart",
        help="auto starts no failure again that would only repeat itself; default: auto",
    ),
    Option(
        name="hang_timeout",
        metavar="auto|SECONDS|off",
        group="restart",
        help="how long a process may show no step before it counts as hung; default: auto",
    ),
    Option(
        name="grace",
        flags=("--shutdown-timeout",),
        pet="shutdown_timeout",
        torchs="TORCH_ELASTIC_SHUTDOWN_TIMEOUT",
        metavar="SECONDS",
        group="restart",
        help="time between the first signal to a process and SIGKILL; default: 30",
    ),
    Option(
        name="signals_to_handle",
        pet="signals_to_handle",
        metavar="NAMES",
        group="restart",
        help="signals passed on to the processes; default: SIGTERM,SIGINT,SIGHUP,SIGQUIT, in Slurm SIGUSR2 too",
    ),
    Option(
        name="monitor_interval",
        pet="monitor_interval",
        metavar="SECONDS",
        group="restart",
        help="how often the processes are looked at; default: 0.1",
    ),
    Option(
        name="run_dir",
        metavar="DIR",
        group="output",
        help="where logs and checkpoints go; used again, the run goes on there",
    ),
    Option(
        name="name",
        metavar="NAME",
        group="output",
        help="the run's name, part of a new run directory's; default: the script's",
    ),
    Option(
        name="log_ranks",
        metavar="0|all|0,3",
        group="output",
        help="ranks whose output is shown; all is on disk; default: 0",
    ),
    Option(
        name="local_ranks_filter",
        pet="local_ranks_filter",
        metavar="0,3",
        group="output",
        help="the same by local rank",
    ),
    Option(
        name="redirects",
        flags=("-r",),
        pet="redirects",
        metavar="0-3",
        group="output",
        help="streams that are not shown: 1 stdout, 2 stderr, 3 both, or 0:3,1:1 by local rank",
    ),
    Option(
        name="tee",
        flags=("-t",),
        pet="tee",
        metavar="0-3",
        group="output",
        help="streams that are shown, written as for --redirects",
    ),
    Option(
        name="log_dir",
        pet="log_dir",
        metavar="DIR",
        group="output",
        help="also show the logs there, as torchrun arranges them",
    ),
    Option(
        name="nnodes",
        pet="nnodes",
        metavar="N|MIN:MAX",
        group="nodes",
        help="nodes, or the fewest and the most; default: those of the allocation, 1 outside",
    ),
    Option(
        name="node_rank",
        pet="node_rank",
        metavar="N",
        group="nodes",
        help="this node's number, from 0; default: the scheduler's",
    ),
    Option(
        name="rdzv_endpoint",
        pet="rdzv_endpoint",
        metavar="HOST:PORT",
        group="nodes",
        help="where the nodes meet; default: the first node of the allocation",
    ),
    Option(
        name="rdzv_backend",
        pet="rdzv_backend",
        metavar="NAME",
        group="nodes",
        help="how they meet: c10d, static, or any that torch knows; default: chosen",
    ),
    Option(name="rdzv_id", pet="rdzv_id", metavar="ID", group="nodes", help="the run's id, the same on every node"),
    Option(name="rdzv_conf", pet="rdzv_conf", metavar="K=V,...", group="nodes", help="settings of the rendezvous"),
    Option(
        name="standalone",
        kind="flag",
        pet="standalone",
        group="nodes",
        help="one node, whatever an allocation says",
    ),
    Option(name="master_addr", pet="master_addr", metavar="HOST", group="nodes", help="the first node's address"),
    Option(name="master_port", pet="master_port", metavar="PORT", group="nodes", help="a free port there"),
    Option(
        name="local_addr",
        pet="local_addr",
        metavar="HOST",
        group="nodes",
        help="the address under which the other nodes reach this one",
    ),
    Option(
        name="profile",
        metavar="NAME|FILE",
        group="plan",
        in_profile=False,
        help="take settings from a TOML file; flags and variables are stronger",
    ),
    Option(
        name="dry_run",
        kind="flag",
        group="plan",
        in_profile=False,
        help="print the plan, with the origin of every value, and start nothing",
    ),
    Option(name="json", kind="flag", group="plan", in_profile=False, help="with --dry-run: for machines"),
    Option(name="role", pet="role", metavar="NAME", group="torchrun", help="the workers' role; default: default"),
    Option(
        name="start_method",
        pet="start_method",
        metavar="NAME",
        choices=("spawn", "fork", "forkserver"),
        group="torchrun",
        help="taken and not used, as torchrun does for scripts",
    ),
    Option(
        name="run_path",
        kind="flag",
        pet="run_path",
        group="torchrun",
        in_profile=False,
        help="run the script by runpy.run_path",
    ),
    Option(
        name="virtual_local_rank",
        kind="flag",
        pet="virtual_local_rank",
        group="torchrun",
        help="LOCAL_RANK is 0 for all, and each sees its own GPU only",
    ),
    Option(
        name="numa_binding",
        metavar="MODE",
        choices=("node", "socket", "exclusive", "core-complex"),
        group="torchrun",
        help="bind the processes to the CPUs near their GPU",
    ),
    Option(
        name="event_log_handler",
        pet="event_log_handler",
        metavar="NAME",
        group="torchrun",
        help="torch elastic's events",
    ),
    Option(name="logs_specs", metavar="NAME", group="torchrun", help="an entry point of torchrun.logs_specs"),
    Option(
        name="duplicate_stdout_filters",
        pet="duplicate_stdout_filters",
        metavar="TEXT,...",
        group="torchrun",
        help="lines of stdout to copy to a file of their own",
    ),
    Option(
        name="duplicate_stderr_filters",
        pet="duplicate_stderr_filters",
        metavar="TEXT,...",
        group="torchrun",
        help="the same for stderr",
    ),
)


def option(name: str) -> Option:
    """Return the option of that name.

    Args:
        name: Its name, as in a plan.
    """
    return next(each for each in OPTIONS if each.name == name)
