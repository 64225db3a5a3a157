import pytest

from tests.support import slurm as real


@pytest.fixture(scope="session")
def running_slurm():
    with real.slurm() as found:
        yield found


@pytest.fixture
def slurm(running_slurm):
    """A Slurm of two idle nodes. What a test leaves running there is ended before the next one, or with the nodes."""
    running_slurm.end_all()
    return running_slurm
