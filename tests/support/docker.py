"""A real Docker engine for the tests, with an image of distrain in it that was built without any registry.

Where an engine answers, it is taken. Elsewhere dockerd is started in namespaces of its own: no network, mount or
process of it is seen outside, and the kernel ends all of it with the test process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import REPOSITORY, Finished, children, kill_all, run, wait_until
from tests.support.real_parts import missing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Container", "Engine", "base_image", "build_context", "engine"]

SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Debian's release by the Python it has: wheels are downloaded for the Python that runs the tests."""

CONTEXT = (".dockerignore", "LICENSE", "README.md", "distrain", "docker", "launch", "pyproject.toml")
START = 'mount -t proc proc /proc; ip link set lo up; exec dockerd "$@"'
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A Docker engine.

    Args:
        host: Where it answers, as DOCKER_HOST has it; None for the default place.
    """

    host: str | None
    env: dict[str, str | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.host is not None:
            self.env["DOCKER_HOST"] = self.host

    def __call__(self, *words: str | os.PathLike[str], deadline_s: float = 60) -> Finished:
        """Run `docker` with words."""
        return run(["docker", *words], env=self.env, deadline_s=deadline_s)

    def shell(self, line: str, *, cwd: Path, deadline_s: float = 200) -> Finished:
        """Run a line of a shell, as a user types it."""
        return run(["bash", "-c", line], env=self.env, cwd=cwd, deadline_s=deadline_s)

    @contextlib.contextmanager
    def container(self, *words: str | os.PathLike[str]) -> Iterator[Container]:
        """Start a container, `docker run --detach` with words; it is gone afterwards."""
        name = f"distrain-test-{uuid.uuid4().hex[:12]}"
        self("run", "--detach", "--name", name, *words).check()
        try:
            yield Container(engine=self, name=name)
        finally:
            self("rm", "--force", "--volumes", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that was started."""

    engine: Engine
    name: str

    def printed(self) -> str:
        """Return what it has printed so far, on both streams."""
        finished = self.engine("logs", self.name).check()
        return finished.stdout + finished.stderr

    def wait_for(self, text: str, deadline_s: float = 120) -> None:
        """Return once it has printed a text."""
        wait_until(lambda: text in self.printed(), deadline_s, what=f"{text!r} in {self.name}", poll_s=0.2)

    def exit_code(self, deadline_s: float = 120) -> int:
        """Wait for its end and return its exit code."""
        return int(self.engine("wait", self.name, deadline_s=deadline_s).check().stdout)

    def run(self, *words: str) -> Finished:
        """Run a command in it, `docker exec`."""
        return self.engine("exec", self.name, *words)


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """Yield an engine: the one that answers, else one that ends afterwards."""
    if shutil.which("docker") is None:
        missing("docker is not on PATH: apt-get install docker.io")
    if run(["docker", "info"]).returncode == 0:
        yield Engine(host=None)
        return
    if os.geteuid() != 0:
        missing("no Docker engine answers, and only root can start one")
    for tool, package in {"dockerd": "docker.io", "ip": "iproute2", "unshare": "util-linux"}.items():
        if shutil.which(tool) is None:
            missing(f"no Docker engine answers, and {tool} is not on PATH: apt-get install {package}")
    with tempfile.TemporaryDirectory(prefix="distrain-docker-") as folder, _started(Path(folder)) as host:
        yield Engine(host=host)


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[str]:
    host = f"unix://{folder}/socket"
    words = ["--host", host, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile"]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--net"),
                *("sh", "-ec", START, "sh", *words, f"{folder}/pid"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509 - no threads here
        )
        try:
            wait_until(
                lambda: process.poll() is not None or run(["docker", "--host", host, "info"]).returncode == 0,
                120,
                what="the Docker engine answers",
                poll_s=0.2,
            )
            if process.poll() is not None:
                log.seek(0)
                missing(f"dockerd does not start here:\n{log.read()[-2000:]}")
            yield host
        finally:
            kill_all(children(process.pid))  # the first process of the namespace, and with it all the others
            process.kill()
            process.wait()
            run(["rm", "-rf", folder / "data"], deadline_s=300)  # many files: Python takes three times as long


def base_image(docker: Engine) -> str:
    """Return the name of an image of Debian with Python and pip, made with debootstrap unless it is there."""
    suite = SUITES.get(sys.version_info[:2])
    if suite is None:
        versions = " or ".join(".".join(map(str, version)) for version in SUITES)
        missing(f"the images need the wheels of Debian's Python: run the tests with Python {versions}")
    name = f"distrain-test/base:{suite}"
    if docker("image", "inspect", name).returncode == 0:
        return name
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        missing("a base image is made by root with debootstrap: apt-get install debootstrap")
    packages = "python3,python3-pip"
    with tempfile.TemporaryDirectory(prefix="distrain-base-") as folder:
        words = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, folder]
        run(words, deadline_s=400).check()
        needless = [f"--exclude=./{path}" for path in ("var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*")]
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        line = 'tar --create --directory "$1" "${@:4}" . | docker import --change "$2" - "$3"'
        run(
            ["bash", "-c", f"set -o pipefail; {line}", "bash", folder, path, name, *needless],
            env=docker.env,
            deadline_s=120,
        ).check()
    return name


def build_context(folder: Path) -> None:
    """Lay out a checkout to build from, with all wheels that the image needs in docker/wheels/."""
    for name in CONTEXT:
        source, target = REPOSITORY / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.whl"))
        else:
            shutil.copy2(source, target)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--constraint", REPOSITORY / ".ci/constraints.txt"]
    run([*words, "--dest", folder / "docker/wheels", *needed], deadline_s=300).check()
