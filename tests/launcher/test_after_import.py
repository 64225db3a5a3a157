"""Something is done after an import of somebody else's, and no import goes astray over it."""

from __future__ import annotations

import importlib
import sys

import pytest

from distrain.launcher.after_import import after_import


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A package whose `early` module is followed by others, as torch's optimizer is; forgotten afterwards."""
    package = tmp_path / "awaited"
    package.mkdir()
    (package / "__init__.py").write_text("from awaited import early\nfrom awaited import late\n")
    (package / "early.py").write_text("import awaited_by_early\ndef register():\n    pass\n")
    (package / "late.py").write_text("")
    (tmp_path / "awaited_by_early.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.startswith("awaited")]:
        del sys.modules[name]


def test_it_is_done_once_and_the_list_of_finders_is_what_it_was(modules):
    finders, done = list(sys.meta_path), []
    after_import("awaited.early", "register", lambda: done.append(sys.modules["awaited.early"].register))
    assert len(sys.meta_path) == len(finders) + 1
    importlib.import_module("awaited_by_early")
    assert not done
    importlib.import_module("awaited")
    assert len(done) == 1
    assert sys.meta_path == finders
    importlib.reload(sys.modules["awaited.late"])
    assert len(done) == 1


def test_what_is_there_already_is_not_waited_for(modules):
    importlib.import_module("awaited")
    finders, done = list(sys.meta_path), []
    after_import("awaited.early", "register", lambda: done.append(1))
    assert done == [1]
    assert sys.meta_path == finders


def test_the_finder_behind_it_is_asked_though_it_leaves_the_list_meanwhile(modules):
    class Asked:
        def __init__(self):
            self.names = []

        def find_spec(self, fullname, path=None, target=None):
            self.names.append((fullname, bool(path)))

    asked = Asked()
    sys.meta_path.insert(0, asked)
    done = []
    after_import("awaited.early", "register", lambda: done.append(1))
    importlib.import_module("awaited")
    assert done
    names = ["awaited", "awaited.early", "awaited_by_early", "awaited.late"]
    assert asked.names == [(name, "." in name) for name in names]


def test_a_module_that_does_not_exist_is_told_as_ever(modules):
    after_import("awaited.early", "register", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'awaited_in_vain'"):
        importlib.import_module("awaited_in_vain")


def test_whoever_does_it_may_import_too(modules):
    """The lookout has left by then: what is imported meanwhile does not begin it anew."""
    done = []

    def then():
        importlib.import_module("awaited_by_early")
        importlib.import_module("awaited.late")
        done.append(1)

    after_import("awaited.early", "register", then)
    importlib.import_module("awaited")
    assert done == [1]
