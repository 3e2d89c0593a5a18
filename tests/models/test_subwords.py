"""Subwords beside bytes: the longest that ends at each, as trying all of them finds it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import dims
from jaxdistill.errors import InputError
from jaxdistill.models import subwords
from jaxdistill.models.design import Design, Subwords
from jaxdistill.models.transformer import Transformer
from jaxdistill.models.variant import Variant

G, Y, D, L = 60, 7, 3, 40
ALPHABET = [0, 1, 97, 255]
added = jax.jit(subwords.added, static_argnums=2)


def by_trying(old_table, embed_VD, tokens_L, place):
    for length in range(Y, 0, -1):
        own = tokens_L[max(place - length + 1, 0) : place + 1]
        if len(own) == length and max(own) < 256 and bytes(own) in old_table:
            return embed_VD[len(old_table) - 1 - old_table[::-1].index(bytes(own))]
    return np.zeros(D)


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_subword_that_ends_at_a_byte_is_that_of_trying_all(seed):
    """Vocabularies with empty, double and too long tokens; texts with ends of documents, zero bytes and the highest."""
    generator = np.random.default_rng(seed)
    pieces = [bytes(generator.choice(ALPHABET, generator.integers(0, Y + 2)).tolist()) for _ in range(G)]
    old_table = pieces[: generator.integers(1, G)] + [b""] * G
    old_table = old_table[:G]
    embed_VD = generator.normal(size=(G + 4, D)).astype(np.float32)
    table = subwords.table(old_table, embed_VD, Y)
    dims.check(table, {"G": G, "Y": Y, "D": D})
    tokens_BL = generator.choice([*ALPHABET, 256], (3, L), p=[0.24, 0.24, 0.24, 0.24, 0.04])
    found_BLD = np.asarray(added(table, tokens_BL, "float32"))
    expected = [[by_trying(old_table, embed_VD, row.tolist(), at) for at in range(L)] for row in tokens_BL]
    np.testing.assert_array_equal(found_BLD, np.array(expected, np.float32))


def config():
    return Variant(
        vocab_size=257, num_layers=1, width=8, num_heads=1, head_size=8, mlp_width=8, vocab_multiple=1,
        design=dataclasses.replace(Design(), subwords=Subwords(30, 4)),
    )  # fmt: skip


def test_a_model_reads_them_beside_its_own_embedding_and_looks_at_no_byte_ahead():
    model = Transformer(config())
    params = model.init(jax.random.key(0, impl="rbg"))
    dims.check(params, config().dims)
    plain = dataclasses.replace(model, config=dataclasses.replace(config(), design=Design()))
    tokens_BL = np.frombuffer(b"the theory", np.uint8)[None].astype(np.int32)
    none = plain.hidden({name: x for name, x in params.items() if name != "subwords"}, tokens_BL)[0]
    np.testing.assert_array_equal(model.hidden(params, tokens_BL)[0], none)  # a fresh table holds nothing
    old_table = [b"the", b"he", b"t", b"eory", *[b""] * 26]
    embed_VD = jax.random.normal(jax.random.key(1), (30, 8))
    full = params | {"subwords": subwords.table(old_table, embed_VD, 4)}
    x_BLD = model._embed(full, jnp.asarray(tokens_BL), None) - plain._embed(params, jnp.asarray(tokens_BL), None)
    expected = [2, -1, 0, -1, 2, -1, 0, -1, -1, 3]
    np.testing.assert_allclose(x_BLD[0], [embed_VD[e] if e >= 0 else np.zeros(8) for e in expected], atol=1e-6)
    changed = tokens_BL.copy()
    changed[0, 6:] = 0
    np.testing.assert_array_equal(model.hidden(full, changed)[0][:, :6], model.hidden(full, tokens_BL)[0][:, :6])
    assert config().num_params == dataclasses.replace(config(), design=Design()).num_params
    with pytest.raises(InputError, match="needs its text whole"):
        model.cache(1, 8)


def test_students_of_other_tokens_than_bytes_are_refused():
    with pytest.raises(InputError, match="is for students of bytes"):
        subwords.check_bytes([b"a", b"b"])
