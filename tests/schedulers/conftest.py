import pytest

from tests.support import slurm as real


@pytest.fixture(scope="session")
def running_slurm():
    with real.slurm() as found:
        yield found


@pytest.fixture
def slurm(running_slurm):
    """A Slurm of two idle nodes; the test's jobs are ended after it."""
    yield running_slurm
    running_slurm.end_all()
