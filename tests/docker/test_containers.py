"""What a container does to a run: limits, shared memory, being the first process."""

from __future__ import annotations

import json
import re
import signal
import textwrap
from pathlib import Path

import pytest

from tests.docker.conftest import SECRET
from tests.support.processes import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

GREEDY = """
    import os, torch, torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    kept = []
    while os.environ["RANK"] == "1":
        kept.append(torch.ones(4 << 20))
    dist.barrier()
"""

BIG_BATCHES = """
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            return torch.ones(3, 512, 512)

    print("batches", len([batch.shape for batch in DataLoader(Images(), batch_size=16, num_workers=2)]))
"""

WAIT = """
    import signal

    print("waiting", flush=True)
    signal.pause()
"""

NO_COMMAND = """
    import signal, sys
    from distrain.cli import main
    from distrain.cli.first_process import is_first_process

    main(["--version"])
    print("first", is_first_process(), flush=True)
    signal.pause()
"""


@pytest.fixture
def program(tmp_path: Path):
    """Return what writes a program and returns the words that mount it as /project/train.py."""

    def write(text: str) -> list[str]:
        tmp_path.chmod(0o755)
        (tmp_path / "train.py").write_text(textwrap.dedent(text))
        return ["--network", "none", "--volume", f"{tmp_path}:/project:ro"]

    return write


def launch(*options: str) -> list[str]:
    return ["launch", "--run-dir", "/tmp/run", *options, "train.py"]


def test_the_image_holds_distrain_and_no_secret(docker, image):
    (found,) = json.loads(docker("image", "inspect", image.name).check().stdout)
    (base,) = json.loads(docker("image", "inspect", image.base).check().stdout)
    config = found["Config"]
    assert (config["User"], config["Entrypoint"], config["WorkingDir"]) == ("1000", ["distrain"], "/project")
    assert len(found["RootFS"]["Layers"]) <= len(base["RootFS"]["Layers"]) + 5
    history = docker("history", "--no-trunc", image.name).check().stdout
    kept = " ".join(config["Env"]) + history
    assert not re.search(r"PIP_|https?://|/wheels", kept)

    sought = r"\( -name token -o -name .env -o -name 'pip.conf' -o -name '*.whl' \)"
    look = f"find / -xdev {sought} -not -path '*/site-packages/*' -not -path '/proc/*' -print"
    listed = docker("run", "--rm", "--entrypoint", "sh", image.name, "-c", f"id -u; {look} 2>/dev/null; true")
    uid, *wheels = listed.check().stdout.split()
    assert uid == "1000"
    assert [Path(path).name.split("-")[0] for path in wheels if "/usr/share/python-wheels/" not in path] == ["distrain"]


def test_what_was_asked_for_is_in_the_image(docker, image):
    """The environment that everything runs in, and not the base's, has the extra's packages and the others."""
    code = "import distrain, hatchling, jinja2; print(distrain.__file__, hatchling.__file__)"
    words = ("run", "--rm", "--network", "none", "--entrypoint", "python", image.name, "-c", code)
    assert docker(*words).check().stdout.count("/opt/distrain/") == 2


def test_the_builder_is_not_given_what_git_does_not_know(docker, image):
    target = f"docker build {image.build} --file docker/Dockerfile --target build --quiet ."
    stage = docker.shell(target, cwd=image.checkout).check().stdout.split()[-1]
    search = f"grep --recursive --files-with-matches {SECRET} /src; ls -A /src"
    listed = docker("run", "--rm", "--network", "none", stage, "sh", "-c", search).check().stdout.split()
    assert {"distrain", "launch", "pyproject.toml"} <= set(listed)
    assert [path for path in listed if path.startswith("/") or path in (".env", "runs", "tests", ".git")] == []


def test_the_death_of_a_limited_container_is_told_as_out_of_memory(docker, image, program):
    limits = ["--memory", "1g", "--memory-swap", "1g"]
    with docker.container(*program(GREEDY), *limits, image.name, *launch("--nproc", "2")) as container:
        assert container.exit_code() == 137
        printed = container.printed()
    (cause,) = re.findall(r"^root cause: (.+)$", printed, re.MULTILINE)
    assert re.match(r"rank 1 on \w+: OutOfMemory: killed by the kernel, out of memory: ", cause)
    assert "the control group's limit is 1.0 GiB" in cause


def test_a_small_shared_memory_is_named_before_workers_die_of_it(docker, image, program):
    words = [*program(BIG_BATCHES), image.name, *launch("--nproc", "1")]
    with docker.container(*words) as container:
        assert container.exit_code() == 1
        printed = container.printed()
    warning, failure = "distrain: warning: /dev/shm has 64 MiB, which is little for this rank", "Traceback"
    assert 0 < printed.index(warning) < printed.index(failure)
    assert "--shm-size=8g" in printed.partition("what to try:")[2]
    with docker.container("--shm-size", "1g", *words) as container:
        assert container.exit_code() == 0
        printed = container.printed()
    assert "batches 4" in printed
    assert "/dev/shm" not in printed


def test_the_first_process_collects_orphans_and_passes_signals_on(docker, image, program):
    with docker.container(*program(WAIT), image.name, *launch("--nproc", "2")) as container:
        container.wait_for("waiting")
        assert b"distrain" in container.run("cat", "/proc/1/cmdline").check().stdout.encode()
        orphan = container.run("sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo $!").check().stdout.strip()
        wait_until(lambda: container.run("test", "-e", f"/proc/{orphan}").returncode == 1, 60, what="it is collected")
        docker("stop", "--time", "40", container.name).check()
        assert container.exit_code() == 128 + signal.SIGTERM  # and not killed after that time
        assert "SIGTERM: passed on to the ranks" in container.printed()


def test_the_first_process_ends_at_signals_that_no_command_takes_over(docker, image):
    """The kernel keeps the default action of a signal from it."""
    words = ["--network", "none", "--entrypoint", "python", image.name, "-c", textwrap.dedent(NO_COMMAND)]
    with docker.container(*words) as container:
        container.wait_for("first True")
        docker("kill", "--signal", "TERM", container.name).check()
        assert container.exit_code(deadline_s=60) == 128 + signal.SIGTERM
