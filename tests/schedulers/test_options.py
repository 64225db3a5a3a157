import pytest

from distrain.errors import UsageError
from distrain.schedulers.slurm.options import check_options, gives, gpus_of, nodes_of, value_of


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("time", text) for text in ("90", "90:30", "4:00:00", "2-12", "2-12:30:00", "0", "UNLIMITED")),
        *(("nodes", text) for text in ("1", "2-4", "1k")),
        *(("gpus_per_node", text) for text in ("8", "a100:8", "a100:4,v100:2", "0")),
        *(("mem", text) for text in ("0", "4000", "64G", "64GB", "512k")),
        *(("array", text) for text in ("0-9", "1,3,5", "0-99:2%4", "7")),
        ("cpus_per_task", "64"),
        ("partition", "gpu,cpu"),
    ],
)
def test_what_slurm_takes_passes(name, text):
    check_options({name: text})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        *(("time", text, "such as 90, 4:00:00 or 2-12") for text in ("4h", "foo", "1:2:3:4", "1-2-3", "-5")),
        *(("nodes", text, "at least 1, or the fewest") for text in ("two", "0", "4-2", "2-")),
        *(("gpus_per_node", text, "such as 8 or a100:8") for text in ("x", "a100", "-1")),
        *(("mem", text, "such as 64G") for text in ("lots", "1.5G", "4X")),
        *(("array", text, "such as 0-9") for text in ("x", "-1", "1-")),
        *(("cpus_per_task", text, "a whole number of at least 1") for text in ("0", "all")),
        ("account", " ", "give a value, or leave the option out"),
    ],
)
def test_what_no_slurm_takes_is_refused(name, text, said):
    with pytest.raises(UsageError, match=said) as caught:
        check_options({name: text})
    assert f"--{name.replace('_', '-')}: got {text!r}" in str(caught.value)


def test_numbers_are_read():
    assert (nodes_of("4"), nodes_of("2-4"), nodes_of("1k")) == ((4, 4), (2, 4), (1024, 1024))
    assert (gpus_of("8"), gpus_of("a100:4,v100:2")) == (8, 6)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--nodes=4"], "4"),
        (["--nodes", "4"], "4"),
        (["-N", "4"], "4"),
        (["-N4"], "4"),
        (["-N4", "--qos=high", "--nodes=2"], "2"),
        (["--nodelist=N4"], None),
        ([], None),
    ],
)
def test_a_word_for_sbatch_is_found(words, value):
    assert value_of(words, "nodes", "N") == value


@pytest.mark.parametrize(
    ("word", "option", "is_read_so"),
    [
        *((word, ("output", "o"), True) for word in ("--output=x", "--output", "--outp=x", "--ou", "-o", "-ox")),
        *((word, ("output", "o"), False) for word in ("--o=x", "--outputs=x", "--open-mode=append", "--", "x")),
        *((word, ("array", "a"), True) for word in ("--arr=0-3", "--ar", "-a0-3")),
        *((word, ("array", "a"), False) for word in ("--a=0-3", "--account=me", "-A", "--partition=array")),
        *((word, ("wait", "W"), True) for word in ("--wait", "-W")),
        *((word, ("wait", "W"), False) for word in ("--wait-all-nodes=1", "--wai", "-w")),
        *((word, ("gpus-per-node",), word == "--gpus-per-n=2") for word in ("--gpus-per-n=2", "--gpus-per=2")),
    ],
)
def test_a_word_is_read_as_getopt_long_does(word, option, is_read_so):
    assert gives(word, *option) is is_read_so


def test_the_value_behind_an_abbreviation_is_found():
    assert value_of(["--part", "gpu", "--gpus-per-n=a100:2"], "partition", "p") == "gpu"
    assert value_of(["--part", "gpu", "--gpus-per-n=a100:2"], "gpus-per-node") == "a100:2"
