"""Settings that a release of torch does not have."""

from __future__ import annotations

import re

import pytest

from distrain.errors import LaunchError
from distrain.launcher.torch_releases import launch_config

NODES = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2}


def test_what_asks_for_nothing_is_left_out():
    config = launch_config({**NODES, "of_a_later_torch": False, "signals_to_handle": "SIGTERM", "shutdown_timeout": 3})
    assert config.nproc_per_node == 2


def test_what_the_user_asks_for_is_refused_by_the_option_s_name():
    with pytest.raises(LaunchError, match=re.escape("does not have --of-a-later-torch; leave it out")):
        launch_config({**NODES, "of_a_later_torch": True})
