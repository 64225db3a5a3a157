"""Which frames are the user's, and how a stack is shown short."""

from __future__ import annotations

import json
import os
import threading

import pytest

import distrain.supervision.frames
from distrain.supervision.frames import Frame, fold, is_library, package_of, short_path

TORCH = "/opt/venv/lib/python3.11/site-packages/torch/"


@pytest.mark.parametrize(
    ("file", "package", "short"),
    [
        (TORCH + "nn/functional.py", "torch", "torch/nn/functional.py"),
        ("/usr/lib/python3/dist-packages/six.py", "six", "six.py"),
        ("C:\\venv\\Lib\\site-packages\\torch\\nn\\x.py", "torch", "torch\\nn\\x.py"),
        ("/a/site-packages/b/site-packages/c.py", "c", "c.py"),
        (threading.__file__, "threading", "threading.py"),
        (json.__file__, "json", "json/__init__.py"),
        (os.path.realpath(json.__file__), "json", "json/__init__.py"),
        ("<frozen importlib._bootstrap>", "importlib", "importlib"),
        ("<frozen runpy>", "runpy", "runpy"),
        (distrain.supervision.frames.__file__, "distrain", "distrain/supervision/frames.py"),
    ],
)
def test_library_files(file, package, short):
    assert is_library(file)
    assert package_of(file) == package
    assert short_path(file) == short


@pytest.mark.parametrize(
    "file",
    ["train.py", "/home/me/distrain-work/train.py", "/home/me/lib/python3.11/mine.py", "<string>", "<stdin>", __file__],
)
def test_user_files(file):
    assert not is_library(file)
    assert package_of(file) == ""
    assert short_path(file) == file


def test_frames_are_the_same_wherever_their_source_was_found():
    assert Frame(file="a", line=1, function="f", code="x") == Frame(file="a", line=1, function="f")
    assert Frame(file="a", line=1, function="f") != Frame(file="a", line=2, function="f")


def test_runs_of_library_frames_are_one_line():
    frames = [
        Frame(file="<frozen runpy>", line=88, function="_run_code"),
        Frame(file="train.py", line=3, function="<module>", code="main()"),
        Frame(file="train.py", line=0, function="main"),
        Frame(file=TORCH + "a.py", line=1, function="f"),
        Frame(file=TORCH + "b.py", line=1, function="g"),
        Frame(file=threading.__file__, line=1, function="h"),
    ]
    assert fold(frames) == [
        "… 1 frame in runpy",
        'File "train.py", line 3, in <module>',
        "  main()",
        'File "train.py", line unknown, in main',
        "… 3 frames in torch, threading",
    ]
    assert fold([]) == []
