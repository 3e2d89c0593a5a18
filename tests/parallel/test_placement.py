"""Which devices are a teacher's own, and what is refused."""

import dataclasses
from types import SimpleNamespace

import pytest

from jaxdistill import config as configs
from jaxdistill.errors import InputError
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Term
from jaxdistill.losses.states import MeanSquare
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.parallel.placement import Disjoint
from jaxdistill.teacher import Across, Draws, Online


def devices(number, processes=1):
    return [SimpleNamespace(id=n, process_index=n % processes) for n in range(number)]


def test_the_last_devices_are_the_teachers():
    of_student, of_teacher = Disjoint(3, Mesh(tensor=3)).split(devices(8))
    assert [device.id for device in of_student] == [0, 1, 2, 3, 4]
    assert [device.id for device in of_teacher] == [5, 6, 7]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Disjoint(0), "placement.devices is 0; a teacher apart needs at least 1"),
        (lambda: Disjoint(4, Mesh(tensor=3)), "does not fit 4 devices"),
        (lambda: Disjoint(8).split(devices(8)), "takes 8 devices and the job has 8: leave some to the student"),
        (lambda: Disjoint(2).split(devices(8, processes=2)), "needs one process that sees all devices"),
        (lambda: Online("run", placement=Disjoint(2)), "a whole distribution does not cross between devices: set"),
        (lambda: Across("run", match="same", placement=Disjoint(2)), "whole distributions, which do not cross"),
        (lambda: Online("run", quantised="int4"), "teacher.quantised is 'int4'; it is 'int8', or None"),
        (lambda: Across("run", quantised="int4"), "teacher.quantised is 'int4'; it is 'int8', or None"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_hidden_states_do_not_cross(distilled):
    teacher = Online("run", Draws(8), placement=Disjoint(1))
    with pytest.raises(InputError, match=r"objective.states looks at the teacher itself, of which only targets cross"):
        dataclasses.replace(distilled, teacher=teacher, objective={"states": Term(Layers(MeanSquare(), ((0, 1),)))})


def test_a_mesh_that_the_students_devices_do_not_fit_is_refused(distilled):
    teacher = Online("run", Draws(8), placement=Disjoint(3))
    experiment = dataclasses.replace(distilled, teacher=teacher, mesh=Mesh(tensor=2))
    with pytest.raises(InputError, match="does not fit 5 devices"):
        experiment.meshes(devices(8))


def test_an_experiment_is_moved_by_overrides_and_keeps_its_identity_without_them(distilled):
    beside = dataclasses.replace(distilled, teacher=Online("run", Draws(8)))
    assert not {"placement", "quantised"} & {path.rpartition(".")[2] for path, _ in configs.fields(beside)}
    asked = ["placement=Disjoint", "placement.devices=4", "placement.mesh.tensor=2", "quantised=int8"]
    moved = configs.override(beside, [f"teacher.{assignment}" for assignment in asked])
    assert moved.teacher == Online("run", Draws(8), placement=Disjoint(4, Mesh(tensor=2)), quantised="int8")
    assert configs.parse(configs.text(moved)) == moved
