"""The benchmarks run and print their tables; what they measure is no matter of tests."""

import sys

import pytest

from tests.support.processes import REPOSITORY, run

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]


def benchmark(*words: str) -> str:
    finished = run([sys.executable, *words], cwd=REPOSITORY / "tests" / "benchmarks", deadline_s=500)
    assert finished.returncode == 0, finished
    return finished.stdout


def test_engine_overhead_prints_its_tables():
    printed = benchmark("engine_overhead.py", "--iterations", "50", "--rounds", "1")
    for title in ("empty step", "nothing but calls", "trainer"):
        assert f"\n{title} " in f"\n{printed}", printed
    for row in ("by hand", "distrain", "distrain, windows of 4", "ignite", "accelerate"):
        assert f"\n{row} " in printed, printed
    assert "\nLightning Trainer " in printed or "lightning is not installed: Lightning Trainer is left out" in printed


def test_accumulation_prints_its_table():
    printed = benchmark("accumulation.py", "--windows", "1", "--rounds", "1")
    rows = printed.partition("a window of 8 ")[2].splitlines()[1:]
    reductions = {row[:34].strip(): float(row[34:].split()[0]) for row in rows}
    assert reductions["distrain"] == reductions["by hand, no_sync"] >= 1
    assert reductions["by hand, every micro-batch reduced"] == reductions["ignite"] == 8 * reductions["distrain"]


def test_distributed_tests_prints_its_table():
    printed = benchmark("distributed_tests.py", "--tests", "2", "--pairs", "1")
    row = next(line for line in printed.splitlines() if line.startswith("| each test after it (goal: ≤ 0.3 s)"))
    assert float(row.strip("| ").split("|")[-1]) > 0


def test_launch_latency_prints_the_dry_runs_ratio_beside_its_goal():
    printed = benchmark("launch_latency.py", "--sizes", "", "--memory", "0", "--pairs", "1")
    row = next(line for line in printed.splitlines() if line.startswith("| --dry-run beside torchrun --help"))
    name, _, _, ratio, _ = (cell.strip() for cell in row.strip("|").split("|"))
    assert name.endswith("(goal: ratio ≤ 0.15)")
    assert float(ratio) > 0
