"""The letters: read from names, found in trees, held against shapes."""

import jax
import numpy as np
import optax
import pytest

from jaxdistill import dims
from jaxdistill.losses.targets import Labels

TREE = {
    "embed_VD": np.zeros((5, 3)),
    "layers": {"attention": {"q_DHK": np.zeros((2, 3, 4, 6))}, "norm_D": np.zeros((2, 3))},
    "step": np.zeros(()),
}
SIZES = {"V": 5, "D": 3, "N": 2, "H": 4, "K": 6}


@pytest.mark.parametrize(
    ("name", "own"),
    [("q_DHK", "DHK"), ("q_norm_K", "K"), ("h_BLD", "BLD"), ("step", ""), ("learning_rate", ""), ("V", ""), ("_V", "")],
)
def test_the_letters_of_a_name_are_its_suffix_in_capitals(name, own):
    assert dims.letters(name) == own


@pytest.mark.parametrize("name", ["x_BLQ", "w_ZV", "w_V2"])
def test_a_letter_outside_the_table_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=f"{name}: no dimension is called [QZ2]; the letters are"):
        dims.letters(name)


def test_every_array_is_found_and_stacked_layers_show_their_number():
    found = {path: (own, leaf.shape) for path, own, leaf in dims.leaves(TREE)}
    assert found == {
        "embed_VD": ("VD", (5, 3)),
        "layers/attention/q_DHK": ("NDHK", (2, 3, 4, 6)),
        "layers/norm_D": ("ND", (2, 3)),
        "step": ("", ()),
    }


def test_the_moments_of_an_optimizer_have_the_letters_of_their_parameters():
    moments = optax.scale_by_adam().init(TREE)
    dims.check(moments, SIZES)
    assert dims.tree_letters(moments).mu == dims.tree_letters(moments).nu == dims.tree_letters(TREE)


def test_a_tree_of_letters_has_the_structure_of_its_tree():
    letters = dims.tree_letters(TREE)
    assert jax.tree.structure(letters) == jax.tree.structure(TREE) and letters["layers"]["norm_D"] == "ND"


def test_a_tree_that_fits_its_letters_passes():
    dims.check(TREE, SIZES)
    dims.check(jax.eval_shape(lambda: TREE), SIZES)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"D": 4}, r"parameters embed_VD: shape \(5, 3\) where .* \(5, 4\): D \(width\) is 3, not 4"),
        ({"H": 2}, r"layers/attention/q_DHK: shape .*: H \(query heads\) is 4, not 2"),
        ({"N": 1}, r"layers/attention/q_DHK: shape .*: N \(layers\) is 2, not 1"),
    ],
    ids=str,
)
def test_the_first_array_of_another_shape_is_named_with_the_dimension_that_differs(size, message):
    with pytest.raises(ValueError, match=message):
        dims.check(TREE, SIZES | size)


def test_a_transposed_embedding_and_a_missing_dimension_are_named():
    with pytest.raises(ValueError, match=r"V \(vocabulary\) is 3, not 5; D \(width\) is 5, not 3"):
        dims.check({"embed_VD": np.zeros((3, 5))}, SIZES)
    with pytest.raises(ValueError, match=r"the checkpoint embed_VD: .* it has 1 dimensions, its name says 2"):
        dims.check({"embed_VD": np.zeros(5)}, SIZES, "the checkpoint")


def test_arrays_with_an_entry_a_token_are_told_from_those_all_tokens_share():
    tree = {"target": Labels(np.zeros((2, 3))), "h_BLD": 0, "w_VD": 0, "coef": 0, "id_BLS": 0, "x_BD": 0}
    per_token = {
        dims.key_name(path[-1]) for path, _ in jax.tree_util.tree_leaves_with_path(tree) if dims.per_token(path)
    }
    assert per_token == {"label_BL", "h_BLD", "id_BLS"}
