"""docker/README.md is true: a user who types its commands gets what it says."""

from __future__ import annotations

import shutil

import pytest

from tests.docker.conftest import NAME, USER, Image, told
from tests.support.docker import Container, Engine
from tests.support.real_parts import missing

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture
def clean(docker: Engine):
    """Remove what the commands leave when one of them fails."""
    yield
    docker("rm", "--force", "--volumes", "training", "node0", "node1")
    docker("network", "rm", "training")


def type_in(docker: Engine, image: Image, command: str, returncode: int = 0) -> str:
    """Run a command in the checkout and return all it printed."""
    finished = docker.shell(command, cwd=image.checkout).check(returncode)
    return finished.stdout + finished.stderr


def test_one_container(docker, image):
    (command,) = told("One container")
    printed = type_in(docker, image, command)
    assert "distrain: 2 ranks on cpu" in printed
    assert "epoch 1: 2." in printed
    assert "/dev/shm" not in printed
    (run_dir,) = image.checkout.glob("runs/*-train-characters-*")
    assert run_dir.stat().st_uid == USER


@pytest.mark.usefixtures("clean")
def test_it_is_stopped_and_goes_on(docker, image):
    run, _follow, stop, wait, start, remove = told("Stop it, and go on")
    type_in(docker, image, run)
    Container(engine=docker, name="training").wait_for("epoch 1: ")
    type_in(docker, image, stop)
    assert type_in(docker, image, wait) == "75\n"
    checkpoints = image.checkout / "runs/characters/checkpoints"
    assert (saved := max(path.name for path in checkpoints.iterdir())) > "step-00000165"  # that of the epoch's end
    last = type_in(docker, image, start)
    assert "epoch 1: " not in last
    assert "epoch 2: 2." in last
    assert "It writes:" in last
    assert "distrain: finished in" in last
    assert saved < max(path.name for path in checkpoints.iterdir())
    type_in(docker, image, remove)


@pytest.mark.usefixtures("clean")
def test_two_containers_train_together(docker, image):
    network, first, second, logs, *remove = told("Two containers")
    for command in (network, first):
        type_in(docker, image, command)
    printed = type_in(docker, image, second)
    assert "OMP_NUM_THREADS=1 (1 available CPUs" in printed
    assert "2 nodes together · node0: rank 0, node1: rank 1 · this is node 1" in printed
    assert "distrain: finished in" in printed
    type_in(docker, image, "docker wait node0")
    printed = type_in(docker, image, logs)
    assert "epoch 1: 2." in printed
    assert "distrain: finished in" in printed
    for command in remove:
        type_in(docker, image, command)


def test_two_nodes_of_the_compose_file_stop_and_go_on(docker, image, monkeypatch):
    monkeypatch.setenv("DISTRAIN_IMAGE", NAME)
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "distrain-test")
    up, down = told("With compose")
    compose = "docker compose" if docker("compose", "version").returncode == 0 else "docker-compose"
    if compose == "docker-compose" and shutil.which(compose) is None:
        missing("neither docker compose nor docker-compose is here: apt-get install docker-compose")
    up, down = (command.replace("docker compose", compose) for command in (up, down))
    ids = down.replace("down --volumes", "ps --quiet --all" if compose == "docker compose" else "ps --quiet")
    try:
        type_in(docker, image, f"{up} --detach")
        nodes = type_in(docker, image, ids).split()
        assert len(nodes) == 2
        head = next(node for node in nodes if "node0" in docker("inspect", "--format={{.Name}}", node).stdout)
        Container(engine=docker, name=head).wait_for("epoch 1: ")
        type_in(docker, image, down.replace("down --volumes", "stop"))
        ended = type_in(docker, image, f"docker wait {' '.join(nodes)}")
        assert ended == "75\n75\n", [docker("logs", node).stderr for node in nodes]
        printed = type_in(docker, image, up)
        assert printed.count("2 nodes together") >= 2
        assert "epoch 2: 2." in printed
        assert type_in(docker, image, f"docker wait {' '.join(nodes)}") == "0\n0\n"
    finally:
        type_in(docker, image, down)
