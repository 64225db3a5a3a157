"""Profiles: found, read, extended; what is wrong in one is said with its line."""

from __future__ import annotations

import re

import pytest

from distrain.errors import UsageError
from distrain.plan import profile


def read(folder, name, **files):
    for stem, text in files.items():
        path = folder / "launch/profiles" / f"{stem}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return profile.read(name, cwd=folder, environ={"HOME": str(folder / "home")})


def texts(found):
    return {name: value.text for name, value in found.values.items()}


def test_values_come_as_the_command_line_would_have_them(tmp_path):
    found = read(
        tmp_path, "a", a='nproc = 2\nmonitor-interval = 0.5\nstandalone = true\nlog_ranks = [0, 3]\nname = "x"'
    )
    assert texts(found) == {
        "nproc": "2",
        "monitor_interval": "0.5",
        "standalone": "1",
        "log_ranks": "0,3",
        "name": "x",
    }
    assert found.values["log_ranks"].where == "a.toml, line 4: log_ranks"


def test_the_nearer_profile_wins(tmp_path):
    found = read(
        tmp_path,
        "c",
        a='nproc = 1\nmax_restarts = 1\ndevice = "cpu"\n[env]\nA = "1"\nB = 1',
        b='extends = "a"\nnproc = 2\nmax_restarts = 2',
        c='extends = "b"\nnproc = 3\n[env]\nA = "3"',
    )
    assert texts(found) == {"nproc": "3", "max_restarts": "2", "device": "cpu"}
    assert {name: value.text for name, value in found.env.items()} == {"A": "3", "B": "1"}
    assert [path.stem for path in found.files] == ["c", "b", "a"]


def test_a_path_is_taken_as_it_is_and_extends_from_its_own_folder(tmp_path):
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "base.toml").write_text("nproc = 2")
    (folder / "mine.toml").write_text('extends = "base"')
    assert texts(read(tmp_path, "settings/mine.toml")) == {"nproc": "2"}
    assert texts(read(tmp_path, str(folder / "mine.toml"))) == {"nproc": "2"}


def test_those_that_come_with_distrain_are_found_from_anywhere(tmp_path):
    assert texts(read(tmp_path, "cpu-2")) == {"nproc": "2", "device": "cpu"}


def test_ones_own_are_found_before_those(tmp_path):
    own = tmp_path / "home/.config/distrain/profiles"
    own.mkdir(parents=True)
    (own / "cpu-2.toml").write_text("nproc = 5")
    assert texts(read(tmp_path, "cpu-2")) == {"nproc": "5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nnprocs = 2", "a.toml, line 3: unknown key 'nprocs'. Did you mean nproc"),
        ("zzz = 2", "a.toml, line 1: unknown key 'zzz'. Valid are nproc, device, "),
        ("dry_run = true", "a.toml, line 1: 'dry_run' cannot be set in a profile, only on the command line."),
        ("nproc = {a = 1}", "a.toml, line 1: got dict; give a text, a number, true, false or a list of them."),
        ("nproc = ", "a.toml is no valid TOML"),
        ("env = 1", "a.toml, line 1: [env] is a table of variables."),
        ("extends = 1", "a.toml, line 1: extends takes a profile's name or path."),
        ('extends = "a"', "profiles extend each other in a circle: a.toml → a.toml."),
        ('extends = "cpu-3"', "there is no profile 'cpu-3'; known here are a, ci, cpu-2"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read(tmp_path, "a", a=text)
    assert "\n" not in str(caught.value).replace(text, "")


def test_a_missing_profile_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"there is no profile 'gpu8'; .*Did you mean gpu-8"):
        read(tmp_path, "gpu8")
    with pytest.raises(UsageError, match=r"there is no file .*/x\.toml"):
        read(tmp_path, "x.toml")
