from pathlib import Path

import pytest

from distrain.errors import UsageError
from distrain.runtime import read_environment

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_a_launcher_sets_everything():
    found = read_environment({**WHOLE, "DISTRAIN_DEVICE": "cpu", "DISTRAIN_RUN_DIR": "/runs/x"})
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (3, 4, 1, 2)
    assert (found.launched, found.device, found.run_dir) == (True, "cpu", Path("/runs/x"))


@pytest.mark.parametrize("environ", [{}, {"MASTER_ADDR": "host", "MASTER_PORT": "1"}])
def test_without_a_launcher_it_is_a_world_of_one(environ):
    found = read_environment(environ)
    assert (found.launched, found.rank, found.world_size, found.device, found.run_dir) == (False, 0, 1, "auto", None)


@pytest.mark.parametrize("name", WHOLE)
def test_half_an_environment_names_what_is_missing(name):
    environ = {key: value for key, value in WHOLE.items() if key != name}
    with pytest.raises(UsageError, match=f"half set: .* without {name}\\."):
        read_environment(environ)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "contradicts itself: RANK=4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2"),
        ({"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE is 'four'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"DISTRAIN_DEVICE": "cudda"}, "must be one of auto, cpu, cuda, xla. Did you mean cuda"),
        ({"DISTRAIN_RUN_DIR": "runs/x"}, "must be an absolute path"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        read_environment({**WHOLE, **change})
