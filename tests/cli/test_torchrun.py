"""`alias torchrun='distrain launch'`: every option of torchrun's own parser, enumerated from it."""

from __future__ import annotations

import argparse

import pytest
from torch.distributed.argparse_util import check_env, env
from torch.distributed.run import get_args_parser

from distrain.cli.launch import _parser
from distrain.cli.parsing import read
from distrain.plan import Program, detect, resolve
from distrain.plan.options import OPTIONS

TORCHRUNS = {
    word: action
    for action in get_args_parser()._actions
    for word in action.option_strings
    if word not in ("-h", "--help")
}

VALUES = {
    "nnodes": "1:2",
    "nproc_per_node": "2",
    "rdzv_backend": "c10d",
    "rdzv_endpoint": "host:1234",
    "rdzv_id": "job",
    "rdzv_conf": "join_timeout=7,read_timeout=8",
    "max_restarts": "3",
    "monitor_interval": "0.5",
    "start_method": "fork",
    "event_log_handler": "console",
    "role": "trainer",
    "log_dir": "logs",
    "redirects": "3",
    "tee": "0:1,1:2",
    "local_ranks_filter": "0,1",
    "duplicate_stdout_filters": "apple,orange",
    "duplicate_stderr_filters": "apple",
    "node_rank": "1",
    "master_addr": "host",
    "master_port": "1234",
    "local_addr": "here",
    "logs_specs": "mine",
    "numa_binding": "node",
    "signals_to_handle": "SIGTERM,SIGUSR1",
    "shutdown_timeout": "5",
}
"""A value for each option of torchrun that takes one."""

TOGETHER = {
    "nnodes": {"rdzv_endpoint": "host:1"},
    "node_rank": {"nnodes": "2", "master_addr": "host"},
    "master_addr": {"nnodes": "2"},
    "local_addr": {"nnodes": "2", "master_addr": "host"},
    "rdzv_conf": {"rdzv_endpoint": "host:1"},
    "local_ranks_filter": {"nproc_per_node": "2"},
}
"""What must be said beside an option for it to make sense."""


@pytest.fixture(autouse=True)
def a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr(detect, "visible_gpus", lambda environ: 0)


def ours(action):
    words = set(action.option_strings)
    return next((each for each in OPTIONS if words & set(each.spellings)), None)


@pytest.mark.parametrize("word", TORCHRUNS)
def test_each_spelling_is_taken_with_the_same_number_of_values(word):
    action = TORCHRUNS[word]
    mine = ours(action)
    assert mine is not None, f"torchrun's {word} ({action.help}) is missing in distrain.plan.options"
    assert word in mine.spellings
    takes_value = action.nargs != 0
    assert takes_value is (mine.kind == "text")
    value = VALUES[action.dest] if takes_value else None
    argv = [word, *([value] if takes_value else []), "train.py", word, "x"]
    flags, script, args = read(_parser(), argv)
    assert (script, args) == ("train.py", [word, "x"])
    assert flags == {mine.name: value if takes_value else "1"}
    if takes_value and word.startswith("--"):
        assert read(_parser(), [f"{word}={value}", "train.py"])[0] == flags


@pytest.mark.parametrize("action", list(dict.fromkeys(TORCHRUNS.values())), ids=lambda action: action.dest)
def test_each_variable_of_torchrun_sets_the_same(action):
    mine = ours(action)
    if not isinstance(action, (env, check_env)):
        assert mine.pet is None
        return
    assert f"PET_{action.dest.upper()}" in mine.variables
    text = VALUES.get(action.dest, "1")
    beside = {f"PET_{name.upper()}": value for name, value in TOGETHER.get(action.dest, {}).items()}
    program = Program(kind="script", target="train.py")
    by_variable = resolve(program, {}, environ={**beside, f"PET_{action.dest.upper()}": text})
    by_flag = resolve(program, {mine.name: text}, environ=beside)
    for name, setting in by_flag.settings.items():
        assert by_variable.settings[name].value == setting.value


def test_a_rendezvous_backend_that_a_package_brings_is_taken(tmp_path, monkeypatch):
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torchrun.handlers]\nmine = mine:handler\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    program = Program(kind="script", target="train.py")
    flags = {"rdzv_backend": "mine", "rdzv_endpoint": "h:1", "rdzv_conf": "join_timeout=5m"}
    assert resolve(program, flags, environ={}).meeting.backend == "mine"


def test_choices_are_the_same():
    for action in TORCHRUNS.values():
        assert tuple(action.choices or ()) == ours(action).choices


def test_defaults_are_the_same_where_nothing_is_detected():
    defaults = vars(get_args_parser().parse_args(["train.py"]))
    plan = resolve(Program(kind="script", target="train.py"), {}, environ={})
    assert plan.meeting is None  # torchrun: nnodes 1:1 with any local rendezvous
    assert str(plan.nproc) == defaults["nproc_per_node"]
    assert plan.max_restarts == defaults["max_restarts"]
    assert plan.monitor_interval_s == defaults["monitor_interval"]
    assert plan.role == defaults["role"]
    assert ",".join(plan.signals) == defaults["signals_to_handle"]
    assert plan.virtual_local_rank == defaults["virtual_local_rank"]
    assert plan.grace_s == 30  # torchrun: None, which its agent takes for 30


def abbreviations():
    """Return each abbreviation that torchrun's own parser takes, with the option that it takes it for."""
    parser = get_args_parser()
    prefixes = {word[:end] for word in TORCHRUNS if word.startswith("--") for end in range(3, len(word))}
    for prefix in sorted(prefixes - {*TORCHRUNS}):
        meant = {action.dest for action, *_ in parser._get_option_tuples(prefix)}
        if len(meant) == 1:
            yield prefix, next(TORCHRUNS[word] for word in TORCHRUNS if word.startswith(prefix))


def test_what_argparse_lets_torchruns_users_abbreviate():
    seen = 0
    for prefix, action in abbreviations():
        value = [] if action.nargs == 0 else [VALUES[action.dest]]
        flags, script, _ = read(_parser(), [prefix, *value, "train.py"])
        assert (flags, script) == ({ours(action).name: value[0] if value else "1"}, "train.py"), prefix
        seen += 1
    assert seen > 200


def test_torchruns_options_are_marked_as_such():
    theirs = {ours(each).name for each in TORCHRUNS.values()}
    newer = {"grace"} - theirs  # torch 2.11 has no --shutdown-timeout yet
    assert {each.name for each in OPTIONS if each.is_torchruns} - newer == theirs


def test_torchruns_parser_is_what_this_file_thinks_it_is():
    assert isinstance(get_args_parser(), argparse.ArgumentParser)
    assert len(TORCHRUNS) > 40
