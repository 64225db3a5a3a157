"""Who set what, and who wins."""

from __future__ import annotations

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, detect, resolve
from distrain.plan.options import GROUPS, OPTIONS
from distrain.plan.sources import given
from distrain.rundir import ENV_LAUNCH_ID, ENV_SMOKE
from distrain.supervision.heartbeat import ENV_HEARTBEAT

SCRIPT = Program(kind="script", target="train.py")


@pytest.fixture(autouse=True)
def a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr(detect, "visible_gpus", lambda environ: 0)
    monkeypatch.setattr(detect, "visible_cpus", lambda: 4)
    monkeypatch.setattr(detect, "available_cpus", lambda: 4)


def planned(folder, flags=None, profile="", **environ):
    if profile:
        (folder / "p.toml").write_text(profile)
        flags = {"profile": "p.toml", **(flags or {})}
    return resolve(SCRIPT, flags, environ=environ, cwd=folder)


def test_the_strongest_source_wins(tmp_path):
    everywhere = {
        "flags": {"nproc": "1"},
        "DISTRAIN_NPROC": "2",
        "PET_NPROC_PER_NODE": "3",
        "profile": "nproc = 4",
    }
    seen = []
    for drop in (None, "flags", "DISTRAIN_NPROC", "PET_NPROC_PER_NODE", "profile"):
        everywhere.pop(drop, None)
        plan = planned(tmp_path, **everywhere)
        seen.append((plan.nproc, plan.settings["nproc"].origin, plan.settings["nproc"].detail))
    assert seen == [
        (1, "flag", "--nproc"),
        (2, "environment", "DISTRAIN_NPROC"),
        (3, "environment", "PET_NPROC_PER_NODE"),
        (4, "profile", "p.toml, line 1: nproc"),
        (1, "detected", "one process where no accelerator is used"),
    ]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PET_NPROC_PER_NODE": "x"}, "PET_NPROC_PER_NODE: got 'x'; give a number of processes"),
        ({"DISTRAIN_MAX_RESTARTS": "-1"}, "DISTRAIN_MAX_RESTARTS: got '-1'; give a whole number of at least 0."),
        ({"PET_STANDALONE": "perhaps"}, "PET_STANDALONE: got 'perhaps'; give 1 or 0."),
        ({"PET_MONITOR_INTERVAL": "0"}, "PET_MONITOR_INTERVAL: got '0'; give a number of seconds above 0."),
        ({"PET_START_METHOD": "spwan"}, "PET_START_METHOD: got 'spwan'; valid are spawn, fork, forkserver. Did you"),
        ({"PET_SIGNALS_TO_HANDLE": "SIGTREM"}, "PET_SIGNALS_TO_HANDLE: got 'SIGTREM'; .*Did you mean SIGTERM"),
        ({"PET_SIGNALS_TO_HANDLE": "SIGKILL"}, r"PET_SIGNALS_TO_HANDLE: got 'SIGKILL'; give names of .* as [A-Z,]+\.$"),
        ({"DISTRAIN_DEVICE": "gpu"}, r"DISTRAIN_DEVICE: got 'gpu'; valid are .*\. Did you mean cuda\?$"),
        ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "a"}, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT: got 'a'"),
    ],
)
def test_a_message_names_the_variable(tmp_path, environ, message):
    with pytest.raises(UsageError, match=message):
        planned(tmp_path, **environ)


def test_a_misspelt_variable_is_named_and_what_is_not_near_or_our_own_is_not(tmp_path):
    environ = {"DISTRAIN_NPROX": "2", "DISTRAIN_HANG_TIMOUT": "off", "DISTRAIN_WAREHOUSE": "7", "DISTRAIN_NPROC": "1"}
    own = dict.fromkeys((ENV_HEARTBEAT, ENV_LAUNCH_ID, ENV_SMOKE), "1")
    assert planned(tmp_path, **environ, **own).warnings == (
        "DISTRAIN_HANG_TIMOUT sets nothing. Did you mean DISTRAIN_HANG_TIMEOUT?",
        "DISTRAIN_NPROX sets nothing. Did you mean DISTRAIN_NPROC?",
    )


@pytest.mark.parametrize("each", OPTIONS, ids=lambda each: each.name)
def test_each_of_an_options_names_has_a_variable(each):
    for key in each.keys:
        said = given({}, {f"DISTRAIN_{key.upper()}": "1"}, None)[each.name]
        assert (said.text, said.where) == ("1", f"DISTRAIN_{key.upper()}")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("nproc", " 02 ", 2), ("nproc", "+2", 2), ("nnodes", "+1:02", "+1:02"), ("max_restarts", "3 ", 3)],
)
def test_numbers_are_read_as_torchrun_reads_them(tmp_path, name, text, value):
    environ = {"PET_RDZV_ENDPOINT": "here:1"} if name == "nnodes" else {}
    assert planned(tmp_path, {name: text}, **environ).settings[name].value == value


@pytest.mark.parametrize("name", ["rdzv_endpoint", "rdzv_conf"])
def test_an_empty_text_is_none_where_torchruns_default_is_empty(tmp_path, name):
    assert planned(tmp_path, {name: ""}).meeting is None


@pytest.mark.parametrize(("text", "is_on"), [("1", True), ("true", True), ("0", False), ("", False), ("false", False)])
def test_a_variable_of_a_flag_is_on_or_off(text, is_on):
    assert ("standalone" in given({}, {"PET_STANDALONE": text}, None)) is is_on


def test_a_stronger_off_switches_a_weaker_on_off(tmp_path):
    plan = planned(tmp_path, profile="no_fork_server = true", DISTRAIN_NO_FORK_SERVER="0")
    assert plan.warm
    assert not planned(tmp_path, profile="no_fork_server = true").warm


def test_an_empty_variable_is_not_set(tmp_path):
    assert planned(tmp_path, PET_NPROC_PER_NODE="").nproc == 1


def test_torchs_own_variable_of_the_grace_is_the_weakest_variable(tmp_path):
    environ = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "7"}
    assert planned(tmp_path, **environ).grace_s == 7
    assert planned(tmp_path, {"grace": "9"}, **environ).grace_s == 9
    assert planned(tmp_path, PET_SHUTDOWN_TIMEOUT="8", **environ).grace_s == 8
    plan = planned(tmp_path, profile="grace = 60", **environ)
    assert (plan.grace_s, plan.settings["grace"].detail) == (7, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")


@pytest.mark.parametrize(
    ("environ", "is_inherited"),
    [
        ({"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, True),
        ({"RANK": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "x"}, False),
    ],
)
def test_what_a_worker_was_told_is_no_option_of_a_launch_in_it(environ, is_inherited):
    told = {"DISTRAIN_RUN_DIR": "/runs/x", "DISTRAIN_DEVICE": "cuda", "DISTRAIN_NPROC": "2"}
    expected = {"nproc"} if is_inherited else {"nproc", "run_dir", "device"}
    assert set(given({}, {**environ, **told}, None)) == expected


def test_every_option_is_listed_once_and_belongs_to_a_group():
    names = [each.name for each in OPTIONS]
    spellings = [word for each in OPTIONS for word in each.spellings]
    variables = [name for each in OPTIONS for name in each.variables]
    assert len(set(names)) == len(names)
    assert len(set(spellings)) == len(spellings)
    assert len(set(variables)) == len(variables)
    assert {each.group for each in OPTIONS} == set(GROUPS)
