"""A program that no rank could run is refused before anything is started."""

from __future__ import annotations

import py_compile
import zipfile

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, check_program


class TestCheckProgram:
    def check(self, folder, target, kind="script"):
        check_program(Program(kind=kind, target=target), cwd=folder)

    def test_a_script_a_folder_an_archive_and_bytecode_pass(self, tmp_path):
        (tmp_path / "train.py").write_text("print(1)")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "__main__.py").write_text("print(1)")
        with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
            archive.writestr("__main__.py", "print(1)")
        (tmp_path / "app").write_bytes(b"#!/usr/bin/env -S app-runner\n" + (tmp_path / "app.zip").read_bytes())
        py_compile.compile(str(tmp_path / "train.py"), cfile=str(tmp_path / "train.pyc"))
        for target in ("train.py", "folder", "app.zip", "app", "train.pyc"):
            self.check(tmp_path, target)
        self.check(tmp_path, "no.such.module", "module")
        self.check(tmp_path, "sh", "command")

    def test_a_missing_script_names_the_nearest(self, tmp_path):
        (tmp_path / "train.py").write_text("")
        with pytest.raises(UsageError, match=r"script 'trian.py' does not exist .*Did you mean train.py\?"):
            self.check(tmp_path, "trian.py")

    def test_a_folder_without_main(self, tmp_path):
        with pytest.raises(UsageError, match=r"without a __main__\.py"):
            self.check(tmp_path, ".")

    @pytest.mark.parametrize("content", [b"#!/bin/bash\necho hi\n", b"\x7fELF\x02\x01\0\0", b"a = 1\0", b"\0PK\5\6"])
    def test_what_is_no_python_is_pointed_to_no_python(self, tmp_path, content):
        (tmp_path / "prog").write_bytes(content)
        with pytest.raises(UsageError, match=r"not a Python script.*--no-python"):
            self.check(tmp_path, "prog")

    def test_a_script_that_does_not_parse(self, tmp_path):
        (tmp_path / "train.py").write_text("def f(:\n")
        with pytest.raises(SyntaxError) as caught:
            self.check(tmp_path, "train.py")
        assert caught.value.lineno == 1

    def test_a_command_that_is_not_there_or_not_executable(self, tmp_path):
        with pytest.raises(UsageError, match="not an executable on the PATH"):
            self.check(tmp_path, "no-such-command-anywhere", "command")
        (tmp_path / "plain").write_text("")
        with pytest.raises(UsageError, match="is not executable"):
            self.check(tmp_path, str(tmp_path / "plain"), "command")
