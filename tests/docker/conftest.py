"""One engine, one base and one image for the whole session; the image is built as docker/README.md says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import docker as support
from tests.support.docker import Engine
from tests.support.processes import REPOSITORY
from tests.support.readme import sections

NAME = "distrain-test/distrain"
USER = 4321
SECRET = "not-for-the-image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The image under test.

    Args:
        name: Its name.
        checkout: The folder that it was built from, a user's checkout, which belongs to a user that no image knows.
        base: The image it was built on.
        build: What was added to `docker build`.
    """

    name: str
    checkout: Path
    base: str
    build: str


def told(section: str) -> list[str]:
    """Return the commands of a section of docker/README.md, with names that spare a developer's own, and few epochs."""
    body = sections((REPOSITORY / "docker/README.md").read_text())[section]
    names = {"--tag distrain ": f"--tag {NAME} ", " distrain launch ": f" {NAME} launch "}
    names |= {'"$(id -u):$(id -g)"': f"{USER}:{USER}", "--epochs 20": "--epochs 2"}
    commands = re.findall(r"^ {4}\$ (.+)$", body, flags=re.MULTILINE)
    for written, ours in names.items():
        commands = [command.replace(written, ours) for command in commands]
    return commands


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    with support.engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def image(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Image:
    base = support.base_image(docker)
    checkout = tmp_path_factory.mktemp("checkout")
    support.build_context(checkout)
    for place in (".env", "distrain/__pycache__/token", "docker/token", "runs/token"):
        path = checkout / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(SECRET)
    nodes = checkout / "docker/compose.yaml"
    nodes.write_text(nodes.read_text().replace('--epochs, "20"', '--epochs, "2"'))
    if os.geteuid() == 0:
        for path in (checkout, checkout / "runs"):
            os.chown(path, USER, USER)
    asked = ("PIP_NO_INDEX=1", f"BASE={base}", "EXTRAS=report", "PACKAGES='hatchling packaging>=20'")
    build = " ".join(f"--build-arg {each}" for each in asked) + " --network none"
    (command,) = told("Build")
    docker.shell(command.replace(" build ", f" build {build} "), cwd=checkout, deadline_s=600).check()
    return Image(name=NAME, checkout=checkout, base=base, build=build)
