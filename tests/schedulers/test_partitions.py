import pytest

from distrain.schedulers.slurm.partitions import parse, too_long

LIMITS = parse("main*|1:00:00\ngpu|2-00:00:00\nlong|infinite\n")


def test_limits_are_read_and_the_default_one_has_no_name():
    assert LIMITS == {"main": "1:00:00", "": "1:00:00", "gpu": "2-00:00:00", "long": "infinite"}
    assert parse("") == {}


@pytest.mark.parametrize(
    ("time", "partitions"),
    [("60", ""), ("4:00:00", "gpu"), ("4:00:00", "main,gpu"), ("9-0", "long"), ("9-0", "unknown"), ("0", "main")],
)
def test_what_a_partition_allows_is_fine(time, partitions):
    assert too_long(time, partitions, LIMITS) is None


def test_what_none_allows_is_said_with_what_they_allow():
    assert too_long("4:00:00", "", LIMITS) == (
        "--time 4:00:00 is longer than its partition allows, the default one (1:00:00): Slurm lets the job wait until "
        "that is changed"
    )
    assert "main (1:00:00) and gpu (2-00:00:00)" in too_long("3-0", "main,gpu", LIMITS)
    assert too_long("4:00:00", "", {}) is None
