import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models import ladder
from jaxdistill.models.transformer import Transformer
from jaxdistill.optim import AdamW
from jaxdistill.parallel import rules
from jaxdistill.parallel.mesh import Mesh
from jaxdistill.step import init_state


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("BLD", P(("data", "fsdp"), None, None)),
        ("DHK", P("fsdp", "tensor", None)),
        ("NDHK", P(None, "fsdp", "tensor", None)),
        ("NFD", P(None, "tensor", "fsdp")),
        ("VD", P("tensor", "fsdp")),
        ("BLHK", P(("data", "fsdp"), None, "tensor", None)),
        ("", P()),
    ],
)
def test_letters_claim_axes_from_left_to_right(own, expected):
    assert rules.spec(own) == expected


def test_every_letter_of_the_model_has_a_rule_and_others_are_refused():
    with pytest.raises(InputError, match="no rule for C"):
        rules.spec("CDF")


def test_moments_lie_where_their_parameters_do():
    model = Transformer(ladder.laptop(64, 512))
    state = jax.eval_shape(lambda key: init_state(model, AdamW(), key), jax.random.key(0))
    mesh = AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    placed = rules.shardings(state, mesh)
    adam = placed.opt[1]
    assert adam.mu == placed.params == adam.nu
    assert placed.params["layers"]["mlp"]["gate_DF"].spec == P(None, "fsdp", "tensor")
    assert placed.step.spec == P()


def test_a_dimension_that_no_axis_divides_is_named():
    mesh = AbstractMesh((1, 1, 8), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    params = {"layers": {"attention": {"k_DJK": jnp.zeros((2, 64, 2, 16))}}}
    with pytest.raises(InputError, match=r"attention/k_DJK: J \(key/value heads\) is 2.*8 devices.*mesh\.tensor"):
        rules.shardings(params, mesh)


@pytest.mark.parametrize(
    ("mesh", "devices", "sizes"),
    [
        (Mesh(), 8, (1, 8, 1)),
        (Mesh(tensor=2), 8, (1, 4, 2)),
        (Mesh(data=-1, fsdp=2), 8, (4, 2, 1)),
        (Mesh(), 1, (1, 1, 1)),
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
