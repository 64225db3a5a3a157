"""`--device xla` where torch_xla is not installed."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.launching import launch


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="torch_xla is installed here")
def test_it_is_said_what_to_install(tmp_path):
    (tmp_path / "train.py").write_text("print(1)")
    done = launch("--device", "xla", "train.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "device xla: torch_xla is not installed for" in done.stderr
    assert "pip install 'distrain[xla]'" in done.stderr
    assert not (tmp_path / "runs").exists()
