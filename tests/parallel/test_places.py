import pytest

from jaxdistill.errors import InputError
from jaxdistill.parallel import places

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


def test_a_plain_command_is_alone():
    assert places.find(environment={}) is None
    assert places.refuse("eval", {}) is None


@pytest.mark.parametrize("environment", [SLURM, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_what_a_cluster_has_started_asks_jax_for_the_others(environment):
    assert places.find(environment=environment) == places.Place()


@pytest.mark.parametrize(
    "environment", [SLURM | {"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "8"}, SLURM | {"JAXDISTILL_PROCESSES": "1"}]
)
def test_one_task_is_alone_and_so_is_who_says_so(environment):
    assert places.find(environment=environment) is None


def test_the_command_line_is_heard_before_the_environment():
    environment = {"JAXDISTILL_COORDINATOR": "a:1", "JAXDISTILL_PROCESSES": "4", "JAXDISTILL_PROCESS": "3"}
    assert places.find(environment=SLURM | environment) == ("a:1", 4, 3)
    assert places.find("b:2", 8, 0, environment) == ("b:2", 8, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a:1", 2, None), "--process not given"),
        ((None, 2, 0), "--coordinator not given"),
        ((None, None, 1), "--coordinator and --processes not given"),
        (("a:1", 2, 2), "--process 2 of --processes 2"),
        (("a:1", 0, 0), "--process 0 of --processes 0"),
        (("a:1", -2, 0), "--processes -2 is not a whole number"),
        (("a", 2, 0), "--coordinator a is not HOST:PORT"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        places.find(*arguments, environment={})


def test_work_for_one_is_refused_to_several():
    with pytest.raises(InputError, match="SLURM has started several processes, and jaxdistill eval is work for one"):
        places.refuse("eval", SLURM)
