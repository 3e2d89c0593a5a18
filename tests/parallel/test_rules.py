import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxdistill import config, dims
from jaxdistill.errors import InputError
from jaxdistill.models import ladder
from jaxdistill.models.transformer import Transformer
from jaxdistill.optim import AdamW
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import AXES, Mesh
from jaxdistill.step import init_state

SEQUENCES, WIDTH = ("data", "fsdp", "expert"), ("fsdp", "context", "expert")


def abstract(mesh: Mesh) -> AbstractMesh:
    return AbstractMesh(mesh.sizes(8), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("BLD", P(SEQUENCES, "context", None)),
        ("BMJK", P(SEQUENCES, None, "tensor", None)),
        ("BLE", P(SEQUENCES, "context", None)),
        ("DHK", P(WIDTH, "tensor", None)),
        ("NDHK", P(None, WIDTH, "tensor", None)),
        ("NFD", P(None, "tensor", WIDTH)),
        ("EDF", P("expert", ("fsdp", "context"), "tensor")),
        ("VD", P("tensor", WIDTH)),
        ("BLHK", P(SEQUENCES, "context", "tensor", None)),
        ("", P()),
    ],
)
def test_letters_claim_axes_from_left_to_right(own, expected):
    assert rules.spec(own) == expected


@pytest.mark.parametrize(
    ("table", "own", "expected"),
    [
        ("data", "BLD", P((*SEQUENCES, "tensor"), "context", None)),
        ("data", "VD", P(None, None)),
        ("fsdp", "VD", P(None, (*WIDTH, "tensor"))),
        ("fsdp", "EDF", P(None, (*WIDTH, "tensor"), None)),
        ("tensor", "BLD", P("data", "context", None)),
        ("tensor", "DHK", P(None, ("fsdp", "expert", "tensor"), None)),
    ],
)
def test_the_other_tables_use_the_same_axes(table, own, expected):
    assert rules.spec(own, rules.named(table)) == expected


def test_every_table_has_the_same_letters_and_splits_the_width_by_what_splits_tokens():
    for table in rules.TABLES.values():
        assert table.keys() == rules.DEFAULT.keys()
        assert set(table["D"]) <= {*table["B"], *table["L"]}


def test_a_table_that_does_not_exist_is_refused(supervised):
    with pytest.raises(InputError, match=r"no sharding table 'tenser'.*'axes', 'data', 'fsdp', 'tensor'"):
        dataclasses.replace(supervised, table="tenser")
    with pytest.raises(InputError, match="table: 'tenser' is not a value"):
        config.override(supervised, ["table=tenser"])


def test_a_batch_lies_by_its_sequences_and_positions():
    batch = {
        "tokens_BL": np.zeros((8, 4)),
        "id_BLS": np.zeros((8, 4, 3)),
        "is_real_BC": np.zeros((8, 3)),
        "score": np.zeros((8, 4)),
    }
    placed = rules.of_batch(batch, abstract(Mesh(fsdp=4, context=2)))
    whole, by_row = P(SEQUENCES, "context"), P(SEQUENCES)
    assert {name: place.spec for name, place in placed.items()} == {
        "tokens_BL": whole, "id_BLS": whole, "is_real_BC": by_row, "score": whole,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"L \(positions\) is 3, which 2 devices of mesh axis context.*mesh\.context"):
        rules.of_batch({"tokens_BL": np.zeros((8, 3))}, abstract(Mesh(fsdp=4, context=2)))


def test_a_teacher_has_the_table_of_its_student_unless_it_is_given_another(distilled):
    assert distilled.teacher_table == distilled.table == "axes"
    assert dataclasses.replace(distilled, table="fsdp").teacher_table == "fsdp"
    changed = config.override(distilled, ["teacher.table=tensor"])
    assert (changed.table, changed.teacher_table) == ("axes", "tensor")


def test_axes_and_tables_that_are_not_asked_for_leave_a_text_as_it_was(supervised):
    text = config.text(supervised)
    assert not any(word in text for word in ("context", "expert", "table"))
    changed = config.override(supervised, ["mesh.context=2", "table=fsdp"])
    assert config.diff(supervised, changed) == [("mesh.context", "-", "2"), ("table", "-", "'fsdp'")]
    assert config.parse(config.text(changed)) == changed


def test_every_letter_of_the_model_has_a_rule_and_others_are_refused():
    with pytest.raises(InputError, match="no rule for S"):
        rules.spec("BLS")


def test_moments_lie_where_their_parameters_do():
    model = Transformer(ladder.laptop(64, 512))
    state = jax.eval_shape(lambda key: init_state(model, AdamW(), key), jax.random.key(0))
    mesh = abstract(Mesh(fsdp=4, tensor=2))
    placed = rules.shardings(state, mesh)
    adam = placed.opt[1]
    assert adam.mu == placed.params == adam.nu
    assert placed.params["layers"]["mlp"]["gate_DF"].spec == P(None, WIDTH, "tensor")
    assert placed.step.spec == P()


def test_a_dimension_that_no_axis_divides_is_named():
    mesh = abstract(Mesh(fsdp=1, tensor=8))
    params = {"layers": {"attention": {"k_DJK": jnp.zeros((2, 64, 2, 16))}}}
    with pytest.raises(InputError, match=r"attention/k_DJK: J \(key/value heads\) is 2.*8 devices.*mesh\.tensor"):
        rules.shardings(params, mesh)


@pytest.mark.parametrize(
    ("mesh", "devices", "sizes"),
    [
        (Mesh(), 8, (1, 8, 1, 1, 1)),
        (Mesh(tensor=2), 8, (1, 4, 1, 1, 2)),
        (Mesh(data=-1, fsdp=2), 8, (4, 2, 1, 1, 1)),
        (Mesh(context=2, expert=2), 8, (1, 2, 2, 2, 1)),
        (Mesh(), 1, (1, 1, 1, 1, 1)),
    ],
)
def test_the_axis_left_open_takes_the_devices_that_are_left(mesh, devices, sizes):
    assert mesh.sizes(devices) == sizes


@pytest.mark.parametrize("arguments", [{"data": -1}, {"tensor": 0}, {"fsdp": -2}])
def test_a_mesh_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(InputError, match="every axis is at least 1"):
        Mesh(**arguments)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(InputError, match="does not fit 8 devices"):
        Mesh(tensor=3).sizes(8)


def test_names_with_unknown_letters_are_refused():
    with pytest.raises(ValueError, match="no dimension is called X"):
        dims.letters("w_XD")


@dataclasses.dataclass(frozen=True)
class Device:
    """A chip of a v5p slice."""

    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    process_index: int = 0
    slice_index: int = 0
    core_on_chip: int = 0


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, tensor=2), Mesh(tensor=8), Mesh(fsdp=2, context=2, expert=8)])
def test_an_axis_may_take_a_part_of_a_dimension_of_the_torus(mesh):
    devices = [Device(*numbered) for numbered in enumerate(itertools.product(range(2), range(4), range(4)))]
    built = mesh.build(devices)
    assert built.devices.shape == mesh.sizes(32)
    assert set(built.devices.flat) == set(devices)
