"""What a two-rank test costs: `@pytest.mark.distributed(nproc=2)` beside torch's own `MultiProcessTestCase`.

    python tests/benchmarks/distributed_tests.py --tests 10 --pairs 3

Both run the same body, an all-reduce over gloo, in pytest runs that alternate. The times are pytest's own, set-up, call
and teardown together, as its junitxml tells them. The first test of a run is told apart: ours starts the warm server.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from xml.etree import ElementTree as ET

OURS = """
    import pytest
    import torch
    import torch.distributed as dist


    @pytest.mark.parametrize("number", range({num_tests}))
    @pytest.mark.distributed(nproc={num_ranks})
    def test_sum(world, number):
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total == {num_ranks}
"""

TORCHS = """
    import torch
    import torch.distributed as dist
    from torch.testing._internal.common_distributed import MultiProcessTestCase


    class Sum(MultiProcessTestCase):
        @property
        def world_size(self):
            return {num_ranks}

        def setUp(self):
            super().setUp()
            self._spawn_processes()

        def body(self):
            store = dist.FileStore(self.file_name, self.world_size)
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world_size)
            total = torch.ones(1)
            dist.all_reduce(total)
            self.assertEqual(total.item(), {num_ranks})
            dist.barrier()
            dist.destroy_process_group()


    for number in range({num_tests}):
        exec(f"def test_sum_{{number}}(self): self.body()", globals())
        setattr(Sum, f"test_sum_{{number}}", globals().pop(f"test_sum_{{number}}"))
"""

NAMES = {"distrain": OURS, "MultiProcessTestCase": TORCHS}


def times_s(program: str, num_tests: int, num_ranks: int) -> list[float]:
    """Return the seconds of each test of a run, in order."""
    with tempfile.TemporaryDirectory(prefix="distributed-tests-") as name:
        folder = Path(name)
        text = textwrap.dedent(program).format(num_tests=num_tests, num_ranks=num_ranks)
        (folder / "test_sum.py").write_text(text)
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml", "test_sum.py"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
        cases = list(ET.parse(folder / "report.xml").iter("testcase"))
        assert len(cases) == num_tests
        return [float(case.get("time", "nan")) for case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tests", type=int, default=10, help="tests in a run, default %(default)s")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each, in turn, default %(default)s")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of a test, default %(default)s")
    options = parser.parse_args()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}")
    print(f"seconds of a test on {options.ranks} ranks; medians of {options.pairs} alternating runs\n")
    first: dict[str, list[float]] = {name: [] for name in NAMES}
    others: dict[str, list[float]] = {name: [] for name in NAMES}
    for pair in range(options.pairs):
        for name in sorted(NAMES, reverse=pair % 2 == 0):
            found = times_s(NAMES[name], options.tests, options.ranks)
            first[name].append(found[0])
            others[name] += found[1:]
    print("| | MultiProcessTestCase | distrain | ratio |\n|---|---:|---:|---:|")
    for title, values in (("first test of a run", first), ("each test after it (goal: ≤ 0.3 s)", others)):
        ours, torchs = (statistics.median(values[name]) for name in NAMES)
        print(f"| {title} | {torchs:.2f} s | {ours:.2f} s | {ours / torchs:.2f} |")


if __name__ == "__main__":
    main()
