"""Who may import whom: the contracts of pyproject.toml and what they cannot see.

The claim that half of the package is free of torch is tried for real too.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distrain
from tests.support.processes import REPOSITORY, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = REPOSITORY / "distrain"

TORCH_FREE = (
    "distrain",
    "distrain.errors",
    "distrain.rundir",
    "distrain.cli",
    "distrain.plan",
    "distrain.schedulers",
    "distrain.supervision",
    "distrain.launcher.run",
    "distrain.launcher.supervisor",
)
HEAVY = ("torch", "numpy", "accelerate", "torch_xla")

IMPORT_ONE_BY_ONE = """
import importlib, json, sys
found = {}
for name in sys.argv[1].split(","):
    importlib.import_module(name)
    for heavy in sys.argv[2].split(","):
        if heavy in sys.modules:
            found.setdefault(heavy, name)
print(json.dumps(found))
"""

LOOK_AROUND = """
import importlib, json, logging, os, signal, sys, threading, warnings
import torch

def look():
    return {
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "threads": [thread.name for thread in threading.enumerate()],
        "signals": {str(n): str(signal.getsignal(n)) for n in signal.valid_signals()},
        "root log handlers": [str(h) for h in logging.getLogger().handlers],
        "root log level": logging.getLogger().level,
        "warning filters": [str(f) for f in warnings.filters],
        "cuda": torch.cuda.is_initialized(),
        "process group": torch.distributed.is_initialized(),
        "random state": torch.initial_seed(),
        "sys.path": sys.path,
        "excepthook": str(sys.excepthook),
        "thread count": torch.get_num_threads(),
        "default dtype": str(torch.get_default_dtype()),
    }

# What our dependencies do at their own first import is theirs; we look at what we do.
for name in ("accelerate", "setproctitle", "threadpoolctl", "tqdm.auto", "torch._dynamo"):
    importlib.import_module(name)
for name in sys.argv[2].split(","):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
before = look()
found = {}
for name in sys.argv[1].split(","):
    importlib.import_module(name)
    after = look()
    found.update({f"{name}: {key}": [before[key], after[key]] for key in before if before[key] != after[key]})
    before = after
print(json.dumps(found))
"""


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def importable_modules() -> list[str]:
    """Every module but those that are programs, or need an extra."""
    return [name for name in modules() if not name.endswith("__main__")]


def torch_free_modules() -> list[str]:
    return [
        name
        for name in importable_modules()
        if any(name == root or (root != "distrain" and name.startswith(f"{root}.")) for root in TORCH_FREE)
    ]


LINT = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as lint; lint()"


def contracts() -> list[dict[str, list[str]]]:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return settings["tool"]["importlinter"]["contracts"]


def test_import_contracts_hold() -> None:
    finished = run([sys.executable, "-c", LINT], cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"Contracts: {len(contracts())} kept, 0 broken" in finished.stdout


def test_a_forbidden_import_breaks_a_contract(tmp_path: Path) -> None:
    settings = (REPOSITORY / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(settings)
    for name, path in modules().items():
        copy = tmp_path / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text()
        copy.write_text(text + "\n\ndef _detour():\n    import torch\n" if name == "distrain.errors" else text)
    finished = run([sys.executable, "-c", LINT], cwd=tmp_path)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "distrain.errors -> torch" in finished.stdout


def test_every_part_of_the_package_has_its_contract() -> None:
    parts = {name.split(".")[1] for name in modules() if "." in name and not name.endswith("__main__")}
    for key in ("source_modules", "forbidden_modules"):
        ruled = {module.split(".")[1] for each in contracts() for module in each.get(key, []) if "." in module}
        # cli may import everything, errors may be imported by everything.
        assert parts - ruled <= {"errors"}, f"give each of these a contract in pyproject.toml and name it in {key}"


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every dotted name that a module imports or reads, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute):
            words = [node.attr]
            inner = node.value
            while isinstance(inner, ast.Attribute):
                words.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield node.lineno, ".".join([inner.id, *reversed(words)])


def uses_of(name: str, path: Path, *forbidden: str) -> list[str]:
    found = {
        f"{name}:{line} uses {use}"
        for line, use in uses(ast.parse(path.read_text()))
        if any(use == word or use.startswith(f"{word}.") for word in forbidden)
    }
    return sorted(found)


def test_the_engine_knows_neither_process_groups_nor_the_environment() -> None:
    engine = {name: path for name, path in modules().items() if name.startswith("distrain.engine")}
    assert engine
    forbidden = ("torch.distributed", "os.environ", "os.getenv", "os.putenv")
    assert [hit for name, path in engine.items() for hit in uses_of(name, path, *forbidden)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch.distributed",
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import get_rank",
        "x = lambda: torch.distributed.get_rank()",
        "x = os.environ['RANK']",
        "from os import environ as env",
    ],
)
def test_the_reader_of_names_sees_each_way_to_say_it(tmp_path: Path, line: str) -> None:
    module = tmp_path / "module.py"
    module.write_text(f"import os, torch\n{line}\n")
    assert uses_of("module", module, "torch.distributed", "os.environ")
    module.write_text("import os, torch\nos.getcwd()\ntorch.zeros(1)\n")
    assert uses_of("module", module, "torch.distributed", "os.environ") == []


def test_no_module_goes_through_the_public_front_door() -> None:
    """The package's lazy names would hide an import from the contracts."""
    lazy = [f"distrain.{name}" for name in distrain._HOME]
    assert [hit for name, path in modules().items() for hit in uses_of(name, path, *lazy)] == []


def test_the_torch_free_half_imports_no_torch() -> None:
    names = torch_free_modules()
    assert {"distrain", "distrain.errors", "distrain.rundir", "distrain.cli", "distrain.launcher.supervisor"} <= {
        *names
    }
    finished = run([sys.executable, "-c", IMPORT_ONE_BY_ONE, ",".join(names), ",".join(HEAVY)]).check()
    assert json.loads(finished.stdout) == {}


@pytest.mark.parametrize("arguments", [["--help"], ["launch", "--help"]], ids=" ".join)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom distrain.cli import main\nsys.argv[0] = 'distrain'\n"
        "try:\n    main()\nexcept SystemExit as exc:\n    assert not exc.code, exc.code\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    finished = run([sys.executable, "-c", script, *arguments]).check()
    assert "usage: distrain" in finished.stdout
    assert finished.stdout.splitlines()[-1] == "heavy: []"


def test_importing_a_module_does_nothing() -> None:
    finished = run(
        [sys.executable, "-c", LOOK_AROUND, ",".join(importable_modules()), "sklearn,tensorboard,jinja2"],
        stdin=subprocess.DEVNULL,
    ).check()
    assert json.loads(finished.stdout.splitlines()[-1]) == {}


def test_variables_that_both_halves_name_have_one_name():
    """The plan may not import who reads them, so each is written twice."""
    from distrain import rundir
    from distrain.plan import environment as told
    from distrain.plan.plan import ENV_DEVICE
    from distrain.runtime import environment as read
    from distrain.supervision import heartbeat

    assert told.ENV_HEARTBEAT == heartbeat.ENV_HEARTBEAT
    assert (told.ENV_LAUNCH_ID, told.ENV_SMOKE) == (rundir.ENV_LAUNCH_ID, rundir.ENV_SMOKE)
    assert (ENV_DEVICE, told.ENV_XLA_SPMD) == (read.ENV_DEVICE, read.ENV_XLA_SPMD)
