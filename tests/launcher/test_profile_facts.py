"""What profiles tell of themselves, and which differences between two of them matter."""

import pytest

from distrain.launcher.profile_facts import differing_keys, differing_variables, profile_says
from distrain.plan import Program, resolve


def says(folder, text, environ=None):
    (folder / "mine.toml").write_text(text)
    program = Program(kind="script", target="train.py")
    return profile_says(resolve(program, {"profile": "mine.toml", "device": "cpu"}, environ=environ or {}, cwd=folder))


def differing(one, other):
    return differing_variables(one, other, "h0", "h1")


def test_options_and_variables_are_told_and_what_may_be_secret_is_not(tmp_path):
    text = 'max_restarts = 3\n[env]\nNCCL_ALGO = "Ring"\nPASSPHRASE = "sesame"\nTORCH_API_KEY = "sesame"\nMINE = "1"'
    told = says(tmp_path, text, {"MINE": "2"})
    assert told["max_restarts"] == "3"
    assert told["env.NCCL_ALGO"] == "Ring"
    assert "sesame" not in str(told)
    assert told["env.PASSPHRASE"].startswith("sha256:")
    assert told["env.MINE"] == "set in the shell"


def test_what_matters_is_named_with_both_values(tmp_path):
    ring, tree = (says(tmp_path, f'[env]\nNCCL_ALGO = "{name}"') for name in ("Ring", "Tree"))
    assert differing(ring, tree) == ["NCCL_ALGO in the profile is Ring on h0 and Tree on h1"]
    assert differing(ring, {}) == ["NCCL_ALGO in the profile is Ring on h0 and not set on h1"]
    one, other = (says(tmp_path, f'[env]\nMIXED_PRECISION = "{name}"') for name in ("bf16", "fp16"))
    assert differing(one, other) == ["MIXED_PRECISION in the profile has one value on h0 and another on h1"]
    assert differing({}, other) == ["MIXED_PRECISION in the profile is not set on h0 and set on h1"]
    assert differing(one, dict(one)) == []


@pytest.mark.parametrize(
    "name",
    [
        "NCCL_DEBUG",
        "NCCL_DEBUG_FILE",
        "NCCL_SOCKET_IFNAME",
        "NCCL_IB_HCA",
        "GLOO_SOCKET_IFNAME",
        "TORCH_LOGS",
        "TORCH_CPP_LOG_LEVEL",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "DATA_DIR",
        "LD_LIBRARY_PATH",
        "HF_HOME",
        "WANDB_API_KEY",
    ],
)
def test_what_belongs_to_a_host_or_is_only_printed_does_not_matter(name):
    one, other = {f"env.{name}": "a"}, {f"env.{name}": "b"}
    assert differing(one, other) == differing(one, {}) == []
    assert differing_keys(one, other) == [f"env.{name}"]


@pytest.mark.parametrize(
    "name",
    ["NCCL_PROTO", "NCCL_ALGO", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_DISTRIBUTED_DEBUG", "OPT_LEVEL", "CATALOG"],
)
def test_what_is_not_known_to_be_harmless_matters(name):
    assert len(differing({f"env.{name}": "a"}, {f"env.{name}": "b"})) == 1


def test_what_the_shell_of_a_node_says_is_meant(tmp_path):
    text = '[env]\nNCCL_ALGO = "Ring"'
    assert differing(says(tmp_path, text, {"NCCL_ALGO": "Tree"}), says(tmp_path, text)) == []


def test_options_are_compared_elsewhere():
    assert differing({"nproc": "8"}, {"nproc": "4"}) == []
