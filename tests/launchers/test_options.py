import argparse
import importlib.util

import pytest

from jaxdistill.errors import InputError
from jaxdistill.launchers import Local, options


def chosen(*arguments):
    parser = argparse.ArgumentParser()
    options.add(parser)
    return options.chosen(parser.parse_args(arguments))


def test_the_default_is_processes_of_this_machine():
    assert isinstance(chosen(), Local)
    assert chosen("--processes", "3").slots == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--address", "auto"], "--address is not an option of --launcher local"),
        (["--launcher", "ray", "--slurm-partition", "a"], "--slurm-partition is not an option of --launcher ray"),
        (["--launcher", "slurm", "--resource", "TPU=4"], "--resource is not an option of --launcher slurm"),
        (["--processes", "0"], "--processes 0 must be at least 1"),
        (["--launcher", "ray", "--cpus-per-run", "0"], "--cpus-per-run 0 must be at least 1"),
        (["--launcher", "ray", "--resource", "TPU"], "--resource TPU is not a name and a value"),
        (["--launcher", "ray", "--resource", "TPU=some"], "--resource TPU=some must say how many"),
        (["--launcher", "slurm", "--slurm-time", "1:30"], "--slurm-time 1:30 is no duration"),
        (["--launcher", "slurm", "--slurm-option", "=x"], "--slurm-option =x is not a name and a value"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=f"^{sentence}"):
        chosen(*arguments)


@pytest.mark.parametrize(("launcher", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_says_how_to_install_it(monkeypatch, launcher, module):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else pytest.fail(name))
    with pytest.raises(InputError, match=rf"pip install 'jaxdistill\[{launcher}\]'"):
        chosen("--launcher", launcher)


def test_a_machine_without_slurm_says_so(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no SLURM on this machine"):
        chosen("--launcher", "slurm")


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("1:30:00", 90), ("0:00:30", 1), ("2-12:00:00", 3600)])
def test_durations_are_read_as_slurm_writes_them(text, minutes):
    assert options.READ["minutes"]("--slurm-time", text) == minutes
