"""The wheel holds distrain and nothing else, and it works where the checkout is not."""

from __future__ import annotations

import os
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import distrain
from tests.support.processes import REPOSITORY, Finished, run

PRIVATE = {"PYTHONPATH": None, "PIP_CONSTRAINT": None, "PIP_NO_INDEX": "1"}

SCRIPT = """\
import os, sys, torch, torch.distributed as dist
import distrain
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print("ranks", int(total), "distrain from", os.path.dirname(distrain.__file__))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, REPOSITORY],
        env=PRIVATE,
    ).check()
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, that sees this one's packages but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run([*pip, "install", "--no-deps", wheel], env=PRIVATE).check()
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(others) + "\n")
    return folder


def away(installed: Path, tmp_path: Path, *args: str) -> Finished:
    return run([installed / "bin" / args[0], *args[1:]], cwd=tmp_path, env=PRIVATE)


def test_the_wheel_holds_distrain_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"distrain-{distrain.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"distrain", info}
    packed = {name for name in names if name.startswith("distrain/")}
    sources = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "distrain").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    profiles = {f"distrain/profiles/{path.name}" for path in (REPOSITORY / "launch/profiles").glob("*.toml")}
    assert packed == sources | profiles
    assert f"{info}/licenses/LICENSE" in names
    assert "distrain/py.typed" in names


def test_the_metadata_says_what_pyproject_says(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"distrain-{distrain.__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert archive.read(f"{info}/entry_points.txt").decode() == (
            "[console_scripts]\ndistrain = distrain.cli:main\n\n[pytest11]\ndistrain = distrain.testing.plugin\n"
        )
        license_text = archive.read(f"{info}/licenses/LICENSE").decode()
    assert metadata["Name"] == "distrain"
    assert metadata["Version"] == distrain.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert {*metadata.get_all("Provides-Extra", [])} == {"dev", "frameworks", "report", "tensorboard", "test", "xla"}
    assert license_text == (REPOSITORY / "LICENSE").read_text()


def test_no_test_code_is_a_dependency(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                source = archive.read(name).decode()
                assert "from tests" not in source, name
                assert "import pytest" not in source or name.startswith("distrain/testing/"), name


def test_it_answers_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    finished = away(installed, tmp_path, "distrain", "--help").check()
    assert finished.stdout.startswith("usage: distrain")
    finished = away(installed, tmp_path, "python", "-c", "import distrain; print(distrain.__file__)").check()
    assert finished.stdout.startswith(os.fspath(installed))


def test_its_profiles_come_along(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    finished = away(installed, tmp_path, "distrain", "launch", "--profile", "cpu-2", "--dry-run", "train.py").check()
    assert f"{installed}" in next(line for line in finished.stdout.splitlines() if line.startswith("profile "))


def test_every_public_name_loads(installed: Path, tmp_path: Path) -> None:
    program = "import distrain\nfor name in distrain.__all__: getattr(distrain, name)\nprint(len(distrain.__all__))"
    finished = away(installed, tmp_path, "python", "-c", program).check()
    assert int(finished.stdout) == len(distrain.__all__)


@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="fork-server"), pytest.param(["--no-fork-server"], id="cold", marks=pytest.mark.deep)],
)
def test_it_launches_away_from_the_checkout(installed: Path, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    finished = away(installed, tmp_path, "distrain", "launch", "--nproc", "2", "--device", "cpu", *options, "train.py")
    finished.check()
    assert f"ranks 2 distrain from {installed}" in finished.stdout
    assert (tmp_path / "runs").is_dir()
