"""Where the nodes meet, when more than one source says so."""

from __future__ import annotations

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, detect, resolve

SCRIPT = Program(kind="script", target="train.py")


@pytest.fixture(autouse=True)
def a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr(detect, "visible_gpus", lambda environ: 0)


@pytest.mark.parametrize(
    ("flags", "environ", "profile", "expected"),
    [
        (
            {"master_addr": "mine", "master_port": "7"},
            {},
            'rdzv_endpoint = "theirs:1"',
            ["mine:7", "p.toml, line 1: rdzv_endpoint (theirs:1) gives way to --master-addr and --master-port"],
        ),
        (
            {"master_addr": "mine", "master_port": "7"},
            {"PET_RDZV_ENDPOINT": "theirs:1"},
            "",
            ["mine:7", "PET_RDZV_ENDPOINT (theirs:1) gives way to --master-addr and --master-port"],
        ),
        (
            {"master_port": "7"},
            {"PET_RDZV_ENDPOINT": "theirs:1"},
            "",
            ["theirs:7", "PET_RDZV_ENDPOINT (theirs:1) gives way to --master-port"],
        ),
        (
            {},
            {"PET_MASTER_ADDR": "theirs"},
            'rdzv_endpoint = "weak:1"\nmaster_port = 9',
            [
                "theirs:1",
                "p.toml, line 2: master_port (9) is ignored: p.toml, line 1: rdzv_endpoint says where nodes meet",
                "p.toml, line 1: rdzv_endpoint (weak:1) gives way to PET_MASTER_ADDR",
            ],
        ),
        (
            {"rdzv_endpoint": "mine:1", "master_addr": "other"},
            {},
            "",
            ["mine:1", "--master-addr (other) is ignored: --rdzv-endpoint says where nodes meet"],
        ),
        ({"rdzv_endpoint": "mine:1"}, {"PET_MASTER_ADDR": "mine", "PET_MASTER_PORT": "1"}, "", ["mine:1"]),
    ],
)
def test_each_half_comes_from_the_stronger_source(tmp_path, flags, environ, profile, expected):
    (tmp_path / "p.toml").write_text(profile)
    flags = {"nnodes": "2", "profile": "p.toml", **flags}
    plan = resolve(SCRIPT, flags, environ=environ, cwd=tmp_path)
    assert plan.meeting.endpoint == plan.settings["rdzv_endpoint"].value
    assert [plan.meeting.endpoint, *plan.warnings] == expected


def test_with_a_store_in_a_file_the_endpoint_is_its_path(tmp_path):
    flags = {"nnodes": "2", "rdzv_conf": "store_type=file", "rdzv_endpoint": "/shared/a:b/store"}
    plan = resolve(SCRIPT, flags, environ={}, cwd=tmp_path)
    assert plan.meeting.endpoint == "/shared/a:b/store"
    del flags["rdzv_endpoint"]
    with pytest.raises(UsageError, match="--rdzv-conf: store_type=file has the nodes meet in a file; name it"):
        resolve(SCRIPT, flags, environ={}, cwd=tmp_path)
