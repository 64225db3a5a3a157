"""Profiles: found, read, extended; what is wrong in one is said with its line."""

from __future__ import annotations

import os
import re
import sys
import threading

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, profile, resolve
from tests.support.launching import environment
from tests.support.processes import run


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
        ("nproc_per_nod = 2", "a.toml, line 1: unknown key 'nproc_per_nod'. Did you mean nproc_per_node"),
        ("zzz = 2", "a.toml, line 1: unknown key 'zzz'. The nearest is "),
        ("zzz = 2", "; valid are nproc, device, "),
        ("dry_run = true", "a.toml, line 1: 'dry_run' cannot be set in a profile, only on the command line."),
        ("nproc = {a = 1}", "a.toml, line 1: nproc: got a table; give a text, a number or a list of them."),
        ("\nnproc = true", "a.toml, line 2: nproc: got true; give a text, a number or a list of them."),
        ("log_ranks = [0, false]", "a.toml, line 1: log_ranks: got [0, false]; give a text, a number or a list"),
        ("nproc = 2026-01-01", "a.toml, line 1: nproc: got 2026-01-01; give a text, a number or a list of them."),
        ("\nstandalone = 1", "a.toml, line 2: standalone: got 1; give true or false."),
        ('standalone = "perhaps"', "a.toml, line 1: standalone: got 'perhaps'; give true or false."),
        ("standalone = [true]", "a.toml, line 1: standalone: got [true]; give true or false."),
        ('name = "a\\u0000"', "a.toml, line 1: name: got 'a\\x00'; no text may hold a zero byte."),
        ("nproc = 2\nnproc-per-node = 3", "a.toml, line 2: nproc-per-node sets the same as a.toml, line 1: nproc;"),
        ("nproc = ", "a.toml is no valid TOML"),
        ("env = 1", "a.toml, line 1: [env] is a table of variables; got 1."),
        ("grace = 1\n[env]\nA = 1\nB = true", "a.toml, line 4: B: got true; give a text, a number or a list of them."),
        ("env.A = 1\nenv.B = {}", "a.toml, line 2: B: got a table"),
        ("[env]\n[env.x]\na = 1", "a.toml, line 2: x: got a table"),
        ('[env]\n"A=B" = 1', "a.toml, line 2: got 'A=B'; no variable can have that name."),
        ('[env]\n"" = 1', "a.toml, line 2: got ''; no variable can have that name."),
        ("\nenv = {A = 1, B = {}}", "a.toml, line 2: B: got a table"),
        ("extends = 1", "a.toml, line 1: extends takes a profile's name or path; got 1."),
        ('extends = "a"', "a.toml, line 1: extends: profiles extend each other in a circle: a.toml → a.toml."),
        (
            'nproc = 1\nextends = "cpu-3"',
            "a.toml, line 2: extends: there is no profile 'cpu-3'; known here are a, ci, ",
        ),
        ('extends = "./b.toml"', "a.toml, line 1: extends: there is no file "),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read(tmp_path, "a", a=text)
    assert "\n" not in str(caught.value).replace(text, "")


def test_a_profile_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "p.toml")
    writer = threading.Thread(target=(tmp_path / "p.toml").write_text, args=("nproc = 2",))
    writer.start()
    assert texts(read(tmp_path, str(tmp_path / "p.toml"))) == {"nproc": "2"}
    writer.join()


def test_words_switch_flags_too(tmp_path):
    found = read(tmp_path, "a", a='standalone = "ON"\nno_fork_server = "off"\nvirtual_local_rank = false')
    assert texts(found) == {"standalone": "1", "no_fork_server": "0", "virtual_local_rank": "0"}


def test_torchruns_names_are_understood(tmp_path):
    found = read(tmp_path, "a", a="nproc_per_node = 2\nshutdown-timeout = 5")
    assert texts(found) == {"nproc": "2", "grace": "5"}
    assert found.values["grace"].where == "a.toml, line 2: shutdown-timeout"


def test_a_variable_has_its_own_line(tmp_path):
    (tmp_path / "a.toml").write_text(
        'name = "é"\n[env]\n# OMP_NUM_THREADS = 1\nA = [0, 1]\nOMP_NUM_THREADS = "many"\n', "utf-8"
    )
    found = profile.read("./a.toml", cwd=tmp_path, environ={})
    assert found.env["A"] == profile.ProfileValue(text="0,1", where="a.toml, line 4: A")
    with pytest.raises(UsageError, match=r"a\.toml, line 5: OMP_NUM_THREADS: got 'many'"):
        resolve(Program(kind="script", target="train.py"), {"profile": "./a.toml"}, environ={}, cwd=tmp_path)


def test_profiles_are_utf_8_whatever_the_locale(tmp_path):
    (tmp_path / "a.toml").write_text('name = "größe"', encoding="utf-8")
    code = "from pathlib import Path; from distrain.plan import profile; import sys;"
    code += "print(ascii(profile.read('./a.toml', cwd=Path.cwd(), environ={}).values['name'].text))"
    env = environment({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
    done = run([sys.executable, "-c", code], cwd=tmp_path, env=env)
    assert done.stdout.strip() == ascii("größe"), done.stderr


def test_a_missing_profile_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"--profile: there is no profile 'gpu8'; .*Did you mean gpu-8"):
        read(tmp_path, "gpu8")
    with pytest.raises(UsageError, match=r"there is no file .*/x\.toml"):
        read(tmp_path, "x.toml")
