"""A worker must not be able to tell that it was forked: what it sees under torchrun, it sees under distrain.

The probe of tests/launcher/probe runs under both launchers; each test compares one section of its answers, key by
key. Whatever may differ stands in `ALLOWED` with its reason and with a check of its own.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distrain.supervision.dumps import STACKS_SIGNAL
from tests.launcher.probe import facts as probe_facts
from tests.support.processes import Finished, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROBE = Path(__file__).parent / "probe"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--redirects", "3")
DISTRAIN = (sys.executable, "-m", "distrain", "launch", "--device", "cpu")
ABSENT = "absent"

BARE = {name: None for name in os.environ if name.startswith(("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "TORCH", "COV_"))}
"""What of the tests' own environment would blur the picture."""

THREADS = {"OMP_NUM_THREADS": "2"}
"""Set for both, because the launchers' defaults differ on purpose; `test_default_thread_count` looks at ours."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to start the probe.

    Args:
        command: Script or module and its arguments; `{out}` is the folder for the answers.
        nproc: Number of ranks.
        env: Changes to the environment.
        cwd: Where it is started.
        prefix: What stands before the launcher: a shell that sets limits, say.
        options: Options of our launcher only.
        stdin: Text on standard input.
        sections: What is compared; all by default.
    """

    command: Sequence[str]
    nproc: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = PROBE
    prefix: Sequence[str] = ()
    options: Sequence[str] = ()
    stdin: str | None = None
    sections: Sequence[str] = tuple(probe_facts.SECTIONS)


IDENTITY = ("main_module", "interpreter", "streams", "process", "own_classes", "modules")
STARTED = ("interpreter", "streams", "open_files", "process", "environment", "signals", "threads", "signals_work")

CASES = {
    "script": Case(command=[str(PROBE / "script.py"), "{out}"], nproc=2),
    "cold": Case(command=[str(PROBE / "script.py"), "{out}"], nproc=2, options=["--no-fork-server"]),
    "package": Case(command=["-m", "probe", "{out}"], cwd=PROBE.parent),
    "module": Case(command=["-m", "script", "{out}"], sections=IDENTITY),
    "relative-path": Case(command=["../probe/./script.py", "{out}"], sections=IDENTITY),
    "symbolic-link": Case(command=["{work}/link.py", "{out}"], sections=IDENTITY),
    "folder": Case(command=["{work}/folder", "{out}"], sections=IDENTITY),
    "archive": Case(command=["{work}/archive.pyz", "{out}"], sections=[*IDENTITY[:-2], "modules"]),
    "python-variables": Case(
        command=[str(PROBE / "script.py"), "{out}"],
        env={
            "PYTHONWARNINGS": "ignore::DeprecationWarning,once::UserWarning",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONHASHSEED": "17",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": str(PROBE),
            "PYTHONUTF8": "1",
            "PYTHONIOENCODING": "latin-1:replace",
            "PYTHONPYCACHEPREFIX": "{work}/bytecode",
            "TZ": "Asia/Tokyo",
        },
    ),
    "thread-variables": Case(
        command=[str(PROBE / "script.py"), "{out}"],
        env={"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "4"},
        sections=["environment", "pools", "torch_process", "process"],
    ),
    "inherited-state": Case(
        command=[str(PROBE / "script.py"), "{out}"],
        prefix=[
            *("sh", "-c"),
            "umask 027; ulimit -n 1000; ulimit -c 0; trap '' USR1 HUP; exec nice -n 3 \"$@\" 9</dev/null",
            "sh",
        ],
        sections=STARTED,
    ),
    "standard-input": Case(
        command=[str(PROBE / "reading.py"), "{out}"], stdin="first\nsecond\nthird\n", sections=["reading", "streams"]
    ),
}

ALWAYS = ("script",)
"""The case of every test run; the others are deep."""

SAME = [(name, section) for name, case in CASES.items() for section in case.sections if section != "distinct"]


def is_a_port(theirs: Any, ours: Any) -> bool:
    return theirs.isdigit() and ours.isdigit()


def is_only_ours(theirs: Any, ours: Any) -> bool:
    return theirs == ABSENT and ours != ABSENT


def both_are_there(theirs: Any, ours: Any) -> bool:
    return ABSENT not in (theirs, ours)


def are_of_the_preloaded(theirs: Any, ours: Any) -> bool:
    return not {*theirs} - {*ours} and {*ours} - {*theirs} <= {*preloaded_modules()}


@functools.cache
def preloaded_modules() -> list[str]:
    """Return the modules of an interpreter that has imported what the fork server imports, and of ours nothing more."""
    program = (
        "import importlib, json, sys\nfrom distrain.launcher import forkserver\n"
        "for name in (*forkserver.AGENT_PRELOAD, *forkserver.WORKER_PRELOAD, 'distrain.launcher.bootstrap',\n"
        "             'setproctitle', 'threadpoolctl', 'distrain.plan.detect'):\n    importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    return json.loads(run([sys.executable, "-c", program], env=BARE).check().stdout)


FATAL = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


def bits(mask: str) -> Iterator[int]:
    """Yield the signals of a mask as /proc shows it."""
    return (number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1)


def without_ours(names: Sequence[str]) -> set[str]:
    return {name for name in names if "DISTRAIN_" not in name and "_SOCKET_IFNAME" not in name}


ALLOWED: list[tuple[str, Callable[[Any, Any], bool], str]] = [
    (r"environment\.MASTER_PORT", is_a_port, "each run has a free port of its own"),
    (r"environment\.MASTER_ADDR", lambda a, b: {a, b} <= {"localhost", "127.0.0.1"}, "one machine, said in two ways"),
    (
        r"process\.threads at start",
        lambda a, b: a == 1 <= b <= len(os.sched_getaffinity(0)) * 2,
        "OpenBLAS, loaded ahead of the program, starts its threads when it is told its count",
    ),
    (
        r"signals\.(dispositions\.SIGHUP|kernel\.SigIgn)",
        lambda a, b: b == "1" or int(b, 16) == int(a, 16) | 1,
        "nohup holds for the workers too; torchrun's agent handles SIGHUP, which undoes it",
    ),
    (r"environment\.TORCHELASTIC_RUN_ID", both_are_there, "each run has a name of its own"),
    (r"environment\.TORCHELASTIC_ERROR_FILE", both_are_there, "lies in the run's own folder"),
    (r"environment\.DISTRAIN_\w+", is_only_ours, "how a worker finds its run directory and device"),
    (
        r"environment\.(GLOO|TP)_SOCKET_IFNAME",
        lambda a, b: (a, b) == (ABSENT, "lo"),
        "gloo and tensorpipe listen where the host's name leads: on one node nothing need listen beyond its loopback",
    ),
    (r"environment_of_children\.sorted", lambda a, b: {*a} == without_ours(b), "as above"),
    (
        r"torch_process\.environment",
        lambda a, b: {*a} ^ without_ours(b) <= {"TORCHINDUCTOR_CACHE_DIR"},
        "as above; and torch's compiler, imported ahead, asks for its folder when it is used: set before the program "
        "it would override the program's own default",
    ),
    (r"modules\.early", are_of_the_preloaded, "what was imported once, for all workers, is there already"),
    (r"main_module\.frames below", lambda a, b: (a, b) == ("none", "f_back"), "a forked program has a caller"),
    (
        r"open_files\.[12]\.access",
        lambda a, b: b == a | os.O_APPEND,
        "children may write to the log too, and it stays whole",
    ),
    (
        r"open_files\.200\.(access|inheritable|target)",
        lambda a, b: a == ABSENT and b in (os.O_WRONLY | os.O_APPEND, False, "file of the run"),
        "where the stacks go in a crash: a high number, which no child inherits",
    ),
    (
        r"signals\.kernel\.SigCgt",
        lambda a, b: {*bits(b)} - {*bits(a)} <= {*FATAL, STACKS_SIGNAL} and {*bits(a)} <= {*bits(b)},
        "the stacks are written at these signals, below Python's handlers",
    ),
    (r"faults\.enabled", lambda a, b: (a, b) == (False, True), "a crash shows the Python stack in the report"),
    (
        r"torch_process\.torch\.optimizer hooks",
        lambda a, b: (a, b) == ([0, 0], [0, 1]),
        "each optimizer's step is seen, so that a hang is",
    ),
    (
        r"torch_process\.multiprocessing\.config",
        lambda a, b: b == [*a, "tempdir"],
        "the sockets of multiprocessing lie in a folder that goes with the run",
    ),
    (
        r"interpreter\.meta_path",
        lambda a, b: b == ["a distrain.launcher.after_import._Lookout", *a],
        "a plain interpreter looks out for pdb, at whose prompt no rank hangs; of the warm ones another test tells",
    ),
    (r"process\.prctl\.parent death signal", lambda a, b: (a, b) == (0, 9), "a worker never outlives the launcher"),
]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of nested dicts with its path; lists are leaves."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Return one line for each leaf that differs and may not."""
    left, right = dict(flat(theirs)), dict(flat(ours))
    found = []
    for path in sorted(left.keys() | right.keys()):
        a, b = left.get(path, ABSENT), right.get(path, ABSENT)
        if a == b:
            continue
        checks = [check for pattern, check, _ in ALLOWED if re.fullmatch(pattern, path)]
        if not any(check(a, b) for check in checks):
            found.append(f"{path}\n    torchrun: {shortened(a, b)}\n    distrain: {shortened(b, a)}")
    return found


def shortened(value: Any, other: Any) -> str:
    """Show a long list by what the other one lacks."""
    if isinstance(value, list) and isinstance(other, list) and len(value) > 8:
        return f"{len(value)} items, of its own {[item for item in value if item not in other]!r}"
    return repr(value)


class Observatory:
    """Runs a case under a launcher when it is first asked for, and remembers what every rank saw.

    Args:
        folder: Where the cases' files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[tuple[str, str], list[dict[str, Any]] | Exception] = {}

    def ranks(self, launcher: str, name: str) -> list[dict[str, Any]]:
        """Return what each rank saw.

        torchrun gets a second chance: now and then its start hangs. So do plain interpreters under the launcher: what
        warm ranks are kept from, torch's hang at the end of a process group (pytorch#56297), they may meet as there.
        """
        key = (launcher, name)
        is_torchs = launcher == "torchrun" or "--no-fork-server" in CASES[name].options
        chances = 0 if key in self._seen else 2 if is_torchs else 1
        for left in reversed(range(chances)):
            if isinstance(self._seen.get(key), list):
                break
            try:
                self._seen[key] = self._observe(launcher, name, CASES[name], deadline_s=40 if left else 100)
            except (AssertionError, TimeoutError) as error:
                self._seen[key] = error
        seen = self._seen[key]
        if isinstance(seen, list):
            return seen
        raise AssertionError(f"the probe did not run under {launcher}") from seen

    def _observe(self, launcher: str, name: str, case: Case, *, deadline_s: float) -> list[dict[str, Any]]:
        work = self._folder / name
        shutil.rmtree(work, ignore_errors=True)
        out = work / "out"  # the same for both launchers, so that sys.argv is the same too
        out.mkdir(parents=True)
        self._prepare(work)
        if launcher == "torchrun":
            command = [*TORCHRUN, "--nproc_per_node", str(case.nproc), "--log-dir", str(work / "logs")]
        else:
            command = [*DISTRAIN, "--nproc", str(case.nproc), "--run-dir", str(work / "run"), *case.options]
        values = {"out": str(out), "work": str(work)}
        sections = () if case.sections == tuple(probe_facts.SECTIONS) else (",".join(case.sections),)
        finished = launch(
            [*case.prefix, *command, *(word.format(**values) for word in case.command), *sections],
            env={**BARE, **THREADS, **{key: value.format(**values) for key, value in case.env.items()}},
            cwd=case.cwd,
            stdin=case.stdin,
            deadline_s=deadline_s,
        )
        found = [json.loads(file.read_text()) for file in sorted(out.iterdir()) if file.suffix == ".json"]
        logs = "\n".join(f"{log}:\n{log.read_text()}" for log in sorted(work.rglob("*.log")))
        assert finished.returncode == 0, f"{launcher}:\n{finished.stdout}\n{finished.stderr}\n{logs}"
        assert len(found) == case.nproc, f"{launcher}:\n{finished.stdout}\n{finished.stderr}\n{logs}"
        return found

    @staticmethod
    def _prepare(work: Path) -> None:
        (work / "link.py").symlink_to(PROBE / "script.py")
        (work / "folder").mkdir()
        shutil.copy(PROBE / "script.py", work / "folder" / "__main__.py")
        shutil.copy(PROBE / "facts.py", work / "folder" / "facts.py")
        with zipfile.ZipFile(work / "archive.pyz", "w") as archive:
            archive.write(PROBE / "script.py", "__main__.py")
            archive.write(PROBE / "facts.py", "facts.py")


def launch(
    command: Sequence[str],
    *,
    env: Mapping[str, str | None],
    cwd: Path,
    stdin: str | None = None,
    deadline_s: float = 100,
) -> Finished:
    if stdin is None:
        return run(command, env=env, cwd=cwd, deadline_s=deadline_s)
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as pipe:
        pipe.write(stdin)
    try:
        return run(command, env=env, cwd=cwd, deadline_s=deadline_s, stdin=read_fd)
    finally:
        os.close(read_fd)


@pytest.fixture(scope="module")
def observatory(tmp_path_factory: pytest.TempPathFactory) -> Observatory:
    return Observatory(tmp_path_factory.mktemp("fidelity"))


@pytest.mark.parametrize(
    ("case", "section"),
    [
        pytest.param(case, section, id=f"{case}-{section}", marks=[] if case in ALWAYS else pytest.mark.deep)
        for case, section in SAME
    ],
)
def test_a_worker_sees_what_it_sees_under_torchrun(observatory: Observatory, case: str, section: str) -> None:
    theirs, ours = observatory.ranks("torchrun", case), observatory.ranks("distrain", case)
    found = [
        f"rank {rank}: {line}"
        for rank, (left, right) in enumerate(zip(theirs, ours, strict=True))
        for line in differences({section: left[section]}, {section: right[section]})
    ]
    assert not found, "\n" + "\n".join(found)
    assert "error" not in theirs[0][section], theirs[0][section]


@pytest.mark.deep
def test_a_plain_interpreter_has_imported_little_that_torch_would_not(observatory: Observatory) -> None:
    """No torch ahead of the program, and of the standard library hardly a module whose name the program could want."""
    theirs, ours = observatory.ranks("torchrun", "cold"), observatory.ranks("distrain", "cold")
    added = {*ours[0]["modules"]["early"]} - {*theirs[0]["modules"]["early"]}
    assert "distrain.launcher.plain" in added
    program = "import json, sys, torch, setproctitle; print(json.dumps(sorted(sys.modules)))"
    allowed = {*json.loads(run([sys.executable, "-c", program], env=BARE).check().stdout)}
    others = {name for name in added - allowed if not name.startswith("distrain")}
    assert others <= {"faulthandler", "sysconfig"}
    assert [name for name in added if name.partition(".")[0] in {"torch", "numpy"}] == []


def test_no_finder_of_ours_stays_in_a_warm_worker(observatory: Observatory) -> None:
    for rank in observatory.ranks("distrain", "script"):
        assert not [finder for finder in rank["interpreter"]["meta_path"] if "distrain" in finder]


@pytest.mark.parametrize("launcher", ["torchrun", "distrain"])
def test_what_must_be_distinct_is(observatory: Observatory, launcher: str) -> None:
    """The hash seed is the exception: a fork server gives it to all its workers, a fresh interpreter draws it."""
    ranks = observatory.ranks(launcher, "script")
    for key in ranks[0]["distinct"]:
        values = [rank["distinct"][key] for rank in ranks]
        if key != "hash":
            assert len({*values}) == len(values), f"{key}: {values}"


def test_default_thread_count(tmp_path: Path) -> None:
    """Ours is the available CPUs divided by the local ranks; torchrun's is 1 for all."""
    command = [*DISTRAIN, "--nproc", "2", "--run-dir", str(tmp_path / "run"), str(PROBE / "script.py"), str(tmp_path)]
    finished = launch([*command, "environment,pools,torch_process"], env=BARE, cwd=PROBE).check()
    expected = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["environment"]["OMP_NUM_THREADS"] == str(expected)
        assert found["torch_process"]["torch"]["threads"][0] == expected
        for where in ("main", "another", "main after work"):
            assert found["pools"][where]["torch"] == expected
            assert {line.rpartition(" ")[2] for line in found["pools"][where]["libraries"]} == {str(expected)}
    assert (finished.stdout + finished.stderr).count("OMP_NUM_THREADS") == 1


CHILDREN = [pytest.param(kind, marks=pytest.mark.deep) for kind in ("fork", "set", "spawn", "forkserver", "torch")]


@pytest.mark.parametrize("kind", CHILDREN)
def test_a_worker_can_have_children_of_every_kind(tmp_path: Path, kind: str) -> None:
    """Pools, DataLoader workers and processes by each start method, as under torchrun."""
    found = {}
    for launcher, command in {
        "torchrun": [*TORCHRUN, "--nproc_per_node", "1", "--log-dir", str(tmp_path / "logs")],
        "distrain": [*DISTRAIN, "--nproc", "1", "--run-dir", str(tmp_path / "run")],
    }.items():
        out = tmp_path / "out"
        out.mkdir()
        launch([*command, str(PROBE / "children.py"), str(out), kind], env={**BARE, **THREADS}, cwd=PROBE).check()
        found[launcher] = json.loads((out / "0.json").read_text())
        shutil.rmtree(out)
    assert differences(found["torchrun"], found["distrain"]) == []
    assert found["torchrun"], "the probe answered nothing"
    assert "Error" not in json.dumps({key: value for key, value in found["torchrun"].items() if "set_" not in key})


ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
REPEATS = re.compile(r"line repeated \d+ more times")


@dataclass(frozen=True, kw_only=True)
class End:
    """How a program ended: its exit code (negative for a signal), what it printed, what it left behind."""

    exit_code: int
    stdout: str
    stderr: str
    traces: str


def comparable(text: str) -> str:
    """Take out addresses, and the depth of a recursion: a forked program has a few frames below its own."""
    return REPEATS.sub("line repeated … more times", ADDRESS.sub("0x…", text))


def ending_names() -> list[str]:
    text = (PROBE / "endings.py").read_text()
    return [name.replace("_", "-") for name in re.findall(r"^@ending\ndef (\w+)", text, flags=re.MULTILINE)]


ENDINGS = ending_names()


class Endings:
    """Ends the probe in every way, plainly and under our launcher.

    Args:
        folder: Where the traces go.
        options: How it is launched.
    """

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self._folder = folder
        self._options = options
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            self.plain = dict(zip(ENDINGS, pool.map(self._plain, ENDINGS), strict=True))
        self.failing = [name for name, end in self.plain.items() if end.exit_code != 0]
        self.succeeding = [name for name, end in self.plain.items() if end.exit_code == 0]
        self.launched = {**self._launch_failing(), **self._launch_succeeding()}

    def _plain(self, name: str) -> End:
        """What `python -u` does with it, as torchrun starts it."""
        out = self._folder / "plain"
        out.mkdir(exist_ok=True)
        finished = run(
            [sys.executable, "-u", str(PROBE / "endings.py"), name, str(out)],
            env={**BARE, **THREADS, "TORCHELASTIC_ERROR_FILE": str(out / f"{name}.error")},
            cwd=PROBE,
        )
        return self._end(name, finished.returncode, finished.stdout, finished.stderr, out)

    def _launch_failing(self) -> dict[str, End]:
        """One rank, and as many restarts as there are ways to fail."""
        names = self.failing
        out, rundir = self._launch(
            names, "failing", "--nproc", "1", "--retry", "always", "--max-restarts", str(len(names) - 1)
        )
        return {name: self._launched(name, rundir, out, attempt=turn, rank=0) for turn, name in enumerate(names)}

    def _launch_succeeding(self) -> dict[str, End]:
        """As many ranks as there are ways to succeed."""
        names = self.succeeding
        out, rundir = self._launch(names, "succeeding", "--nproc", str(len(names)))
        return {name: self._launched(name, rundir, out, attempt=0, rank=turn) for turn, name in enumerate(names)}

    def _launch(self, names: Sequence[str], what: str, *options: str) -> tuple[Path, Path]:
        out, rundir = self._folder / what, self._folder / f"{what}-run"
        out.mkdir()
        words = [str(PROBE / "endings.py"), ",".join(names), str(out)]
        command = [*DISTRAIN, *self._options, *options, "--run-dir", str(rundir), *words]
        launch(command, env={**BARE, **THREADS}, cwd=PROBE, deadline_s=400)
        return out, rundir

    def _launched(self, name: str, rundir: Path, out: Path, *, attempt: int, rank: int) -> End:
        events = [json.loads(line) for line in (rundir / "events.jsonl").read_text().splitlines()]
        started = {
            event["pid"]: (event["attempt"], event["rank"]) for event in events if event["event"] == "worker_started"
        }
        codes = {started[event["pid"]]: event["exit_code"] for event in events if event["event"] == "worker_exited"}
        logs = rundir / f"attempt-{attempt}" / f"rank-{rank}"
        if (attempt, rank) not in codes:
            pytest.fail(f"{name} was never run: the launch ended before, or its exit was not seen; see {rundir}")
        text = [(logs / f"{stream}.log").read_text(errors="replace") for stream in ("stdout", "stderr")]
        return self._end(name, codes[attempt, rank], *text, out)

    @staticmethod
    def _end(name: str, exit_code: int, stdout: str, stderr: str, out: Path) -> End:
        traces = out / name
        return End(
            exit_code=exit_code,
            stdout=comparable(stdout),
            stderr=comparable(stderr),
            traces=traces.read_text() if traces.exists() else ABSENT,
        )


@pytest.fixture(scope="module", params=["warm", "--no-fork-server"])
def endings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Endings:
    return Endings(tmp_path_factory.mktemp("endings"), [] if request.param == "warm" else [request.param])


@pytest.mark.deep
@pytest.mark.parametrize("name", ENDINGS)
def test_a_worker_ends_as_a_plain_interpreter_does(endings: Endings, name: str) -> None:
    plain, launched = endings.plain[name], endings.launched[name]
    if name == "segmentation-fault-explained":
        # The signal's handler prints the C stack's Python frames: below the program's own stand the launcher's, and
        # the list of extension modules holds torch's.
        head = plain.stderr.partition("\n\n")[2].partition("\n\n")[0]
        assert head in launched.stderr
        assert (plain.exit_code, plain.stdout) == (launched.exit_code, launched.stdout)
        return
    assert launched == plain


@pytest.mark.deep
def test_the_endings_are_of_both_kinds(endings: Endings) -> None:
    assert len(endings.failing) > 20
    assert len(endings.succeeding) > 10


def test_torchs_own_error_file_is_written(tmp_path: Path) -> None:
    """`@record` and everything that reads its file (torchx, elastic itself) go on working."""
    command = [*DISTRAIN, "--nproc", "1", "--run-dir", str(tmp_path / "run"), str(PROBE / "endings.py")]
    launch([*command, "recorded-by-torch", str(tmp_path)], env=BARE, cwd=PROBE).check(1)
    (file,) = tmp_path.rglob("error.json")
    assert "ValueError: recorded" in file.read_text()


@pytest.mark.deep
def test_a_command_gets_the_environment_of_a_worker(tmp_path: Path) -> None:
    """`--no-python`: any program, one for each rank, with torchrun's variables."""
    found = {}
    for launcher, command in {
        "torchrun": [*TORCHRUN, "--nproc_per_node", "2", "--log-dir", str(tmp_path / "logs"), "--no-python"],
        "distrain": [*DISTRAIN, "--nproc", "2", "--run-dir", str(tmp_path / "run"), "--no-python"],
    }.items():
        program = f"env -0 > {tmp_path}/$RANK.env"
        launch([*command, "sh", "-c", program], env={**BARE, **THREADS}, cwd=tmp_path).check()
        for rank in range(2):
            lines = (tmp_path / f"{rank}.env").read_text().split("\0")
            found[launcher, rank] = dict(line.split("=", 1) for line in lines if line)
    for rank in range(2):
        left, right = found["torchrun", rank], found["distrain", rank]
        assert differences({"environment": left}, {"environment": right}) == []


@pytest.mark.deep
def test_an_open_file_of_the_shell_stays_out(tmp_path: Path) -> None:
    """A descriptor that our caller left open goes to neither launcher's workers by accident of ours."""
    script = tmp_path / "files.py"
    # the last one is that of the listing itself; from 200 on there is only where the stacks go
    script.write_text("import os; print(sorted(n for n in map(int, os.listdir('/proc/self/fd')) if n < 200)[:-1])")
    texts = []
    for launcher in (
        [*TORCHRUN, "--nproc_per_node", "1", "--log-dir", str(tmp_path / "logs")],
        [*DISTRAIN, "--nproc", "1", "--run-dir", str(tmp_path / "run")],
    ):
        with open(tmp_path / "kept", "w") as file:
            os.set_inheritable(file.fileno(), True)
            subprocess.run(
                [*launcher, script],
                env={key: value for key, value in os.environ.items() if key not in BARE},
                pass_fds=[file.fileno()],
                check=True,
                timeout=60,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        (log,) = [log for log in tmp_path.rglob("stdout.log") if log.stat().st_size]
        texts.append(log.read_text())
        log.unlink()
    assert texts[0] == texts[1]
