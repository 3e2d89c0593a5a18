"""The TPU kernels, interpreted on the CPU with race detection, against the definitions in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from scipy.special import logsumexp

from jaxdistill.errors import InputError
from jaxdistill.losses.linear_heads.blocks import Tile, TpuBlocks
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_backward import backward
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_elementwise import gradient, statistics
from jaxdistill.losses.linear_heads.sparse.pallas_tpu_forward import forward
from jaxdistill.losses.targets import NO_ID

EPS = float(jnp.finfo(jnp.float32).eps)
UNDERFLOW = 8 * float(jnp.finfo(jnp.float32).tiny)  # a probability that became zero, times a cotangent
RACES = pltpu.InterpretParams(detect_races=True)
FAST = True  # the interpreter without race detection, where many trips make the other one slow
BLOCKS = TpuBlocks(Tile(128, 256), Tile(128, 256), Tile(128, 256), chunk=256, cores=1, vmem_bytes=2**26)


@pytest.fixture(autouse=True)
def no_race(capfd):
    """jax 0.10 prints what a newer one raises."""
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out


def some_ids(rng, T, S, V):
    """Ascending, from both sides of the vocabulary, with duplicates where there is room for them, and padding."""
    id_TS = np.sort(rng.integers(-V // 4 - 1, V + V // 4 + 1, (T, S)), axis=1).astype(np.int32)
    id_TS[:, S // 2] = id_TS[:, (S - 1) // 2]
    id_TS[: T // 2, S - S // 5 :] = NO_ID
    return id_TS


def definition(z_TV, id_TS, temperature=1.0, vocab_size=None):
    """(lse_T, z_TS, p_TV, known_TS) in float64."""
    vocab_size = z_TV.shape[1] if vocab_size is None else vocab_size
    masked_TV = np.where(np.arange(z_TV.shape[1]) < vocab_size, z_TV / temperature, -np.inf)
    lse_T = logsumexp(masked_TV, axis=1)
    known_TS = (id_TS >= 0) & (id_TS < vocab_size)
    z_TS = np.where(known_TS, np.take_along_axis(z_TV, np.where(known_TS, id_TS, 0), axis=1), 0)
    return lse_T, z_TS, np.exp(masked_TV - lse_T[:, None]), known_TS


def dlogits(p_TV, known_TS, id_TS, dlse_T, dz_TS, temperature=1.0):
    dz_TV = (dlse_T / temperature)[:, None] * p_TV
    np.add.at(dz_TV, (np.arange(len(id_TS))[:, None], np.where(known_TS, id_TS, 0)), np.where(known_TS, dz_TS, 0))
    return dz_TV


def agree(actual, expected, tolerance):
    """|actual - expected| <= tolerance everywhere, and the tolerance is one that a wrong result would not meet."""
    expected, tolerance = np.asarray(expected), np.broadcast_to(tolerance, np.shape(expected))
    assert np.linalg.norm(tolerance) < 0.05 * np.linalg.norm(expected)
    excess = np.abs(np.asarray(actual, np.float64) - expected) - tolerance
    assert excess.max() <= 0, f"{excess.max()} beyond a tolerance of {tolerance.max()}"


@pytest.mark.parametrize(
    ("T", "V", "S", "temperature", "spread", "dtype"),
    [
        (100, 2049, 12, 1.0, 5.0, jnp.float32),
        (256, 512, 50, 2.0, 1.0, jnp.bfloat16),
        (16, 12, 12, 1.0, 3.0, jnp.float32),
        (130, 300, 256, 0.5, 0.1, jnp.float32),
        (48, 384, 1, 1.0, 30.0, jnp.bfloat16),
    ],
)
def test_elementwise_kernels_give_statistics_and_gradient_of_a_chunk(T, V, S, temperature, spread, dtype):
    rng = np.random.default_rng(V + S)
    z_TV = rng.normal(0, spread, (T, V)).astype(np.float32)
    id_TS = some_ids(rng, T, S, V)
    dlse_T, dz_TS = rng.normal(size=T).astype(np.float32), rng.normal(size=(T, S)).astype(np.float32)
    keywords = dict(temperature=temperature, blocks=BLOCKS, interpret=FAST if S == 256 else RACES)
    lse_T, z_TS = statistics(z_TV, id_TS, **keywords)
    dz_TV = gradient(z_TV, id_TS, lse_T, dlse_T, dz_TS, dtype=dtype, **keywords)

    expected_lse_T, expected_z_TS, p_TV, known_TS = definition(z_TV.astype(np.float64), id_TS, temperature)
    largest = np.abs(z_TV).max() / temperature
    np.testing.assert_array_equal(z_TS, expected_z_TS.astype(np.float32))
    relative = EPS * (2 * largest + np.sqrt(V))  # a rounding of z / temperature and of lse, and one for each addition
    agree(lse_T, expected_lse_T, relative + EPS * np.abs(expected_lse_T))
    magnitude_TV = dlogits(p_TV, known_TS, id_TS, np.abs(dlse_T), np.abs(dz_TS), temperature)
    assert dz_TV.dtype == dtype
    expected_TV = dlogits(p_TV, known_TS, id_TS, dlse_T, dz_TS, temperature)
    agree(dz_TV, expected_TV, (relative + S * EPS + jnp.finfo(dtype).eps / 2) * magnitude_TV + UNDERFLOW)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A head and cotangents for the lean pair."""

    T: int
    D: int
    V: int
    S: int
    dtype: type = jnp.float32
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    vocab_size: int | None = None
    bias: bool = False
    spread: float = 3.0

    def arrays(self):
        rng = np.random.default_rng(self.V + self.S)
        h_TD = jnp.asarray(rng.normal(size=(self.T, self.D)), self.dtype)
        w_VD = jnp.asarray(rng.normal(0, self.spread / self.D**0.5, (self.V, self.D)), self.dtype)
        bias_V = rng.normal(size=self.V).astype(np.float32) if self.bias else None
        dlse_T = rng.normal(size=self.T).astype(np.float32)
        return h_TD, w_VD, bias_V, some_ids(rng, self.T, self.S, self.V), dlse_T, rng.normal(size=(self.T, self.S))

    @property
    def keywords(self):
        return dict(scale=self.scale, softcap=self.softcap, temperature=self.temperature)


def check_lean_pair(problem: Problem, blocks: TpuBlocks = BLOCKS, interpret=RACES):
    """Both kernels against float64; tolerances follow the roundings from the product on."""
    h_TD, w_VD, bias_V, id_TS, dlse_T, dz_TS = problem.arrays()
    vocab_size = problem.V if problem.vocab_size is None else problem.vocab_size
    keywords = dict(**problem.keywords, vocab_size=jnp.int32(vocab_size), blocks=blocks, interpret=interpret)
    lse_T, z_TS = forward(h_TD, w_VD, bias_V, id_TS, **keywords)
    dh_TD, dw_VD, dbias_V = backward(h_TD, w_VD, bias_V, id_TS, lse_T, dlse_T, dz_TS.astype(np.float32), **keywords)

    h, w = np.asarray(h_TD, np.float64), np.asarray(w_VD, np.float64)
    u_TV = problem.scale * h @ w.T + (0 if bias_V is None else bias_V)
    cap = problem.softcap
    z_TV = u_TV if cap is None else cap * np.tanh(u_TV / cap)
    slope_TV = 1.0 if cap is None else 1 - (z_TV / cap) ** 2
    expected_lse_T, expected_z_TS, p_TV, known_TS = definition(z_TV, id_TS, problem.temperature, vocab_size)
    z_error = EPS * (np.sqrt(problem.D) * abs(problem.scale) * (np.abs(h) @ np.abs(w).T).max() + 2 * np.abs(u_TV).max())
    agree(z_TS, expected_z_TS, z_error)
    agree(lse_T, expected_lse_T, z_error / problem.temperature + EPS * (np.sqrt(problem.V) + np.abs(expected_lse_T)))

    arguments = known_TS, id_TS, problem.temperature
    du_TV = dlogits(p_TV, *arguments[:2], dlse_T, dz_TS, problem.temperature) * slope_TV
    size_TV = dlogits(p_TV, *arguments[:2], np.abs(dlse_T), np.abs(dz_TS), problem.temperature)
    relative = 3 * z_error / problem.temperature + EPS * (problem.S + np.sqrt(problem.V))
    relative += 0 if cap is None else 2 * z_error / cap + 4 * EPS
    rounding = float(jnp.finfo(problem.dtype).eps) / 2
    matmuls = problem.scale * (relative + rounding + EPS * np.sqrt(problem.T + problem.V))
    agree(dh_TD, problem.scale * du_TV @ w, matmuls * size_TV @ np.abs(w))
    agree(dw_VD, problem.scale * du_TV.T @ h, matmuls * size_TV.T @ np.abs(h) + UNDERFLOW)
    assert (dbias_V is None) == (bias_V is None)
    if dbias_V is not None:
        agree(dbias_V, du_TV.sum(0), (relative + EPS * np.sqrt(problem.T)) * size_TV.sum(0) + UNDERFLOW)
    assert {x.dtype for x in (lse_T, z_TS, dh_TD, dw_VD)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "problem",
    [
        Problem(T=300, D=64, V=600, S=12),
        Problem(T=100, D=64, V=512, S=50, dtype=jnp.bfloat16),
        Problem(T=130, D=40, V=2049, S=50, scale=0.5, softcap=5.0, temperature=2.0, bias=True, vocab_size=2000),
        Problem(T=40, D=64, V=300, S=256, spread=0.1, temperature=0.5),
        Problem(T=40, D=32, V=300, S=1, spread=10.0, bias=True, dtype=jnp.bfloat16),
        Problem(T=16, D=16, V=12, S=12, vocab_size=10, softcap=30.0),
    ],
    ids=str,
)
def test_lean_pair_gives_the_logits_statistics_and_their_gradient(problem):
    check_lean_pair(problem, interpret=FAST if problem.S == 256 else RACES)


@pytest.mark.parametrize("V", [200, 600])
def test_two_cores_share_the_vocabulary_whether_it_halves_or_not(V):
    cores = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    check_lean_pair(Problem(T=140, D=32, V=V, S=12, bias=True), dataclasses.replace(BLOCKS, cores=2), cores)


def test_a_shard_past_the_vocabulary_counts_nowhere():
    h_TD, w_VD, _, id_TS, dlse_T, dz_TS = Problem(T=20, D=16, V=256, S=4).arrays()
    keywords = dict(vocab_size=jnp.int32(-40), blocks=BLOCKS, interpret=RACES)
    lse_T, z_TS = forward(h_TD, w_VD, None, id_TS, **keywords)
    assert np.all(lse_T < -1e29)
    assert not np.any(z_TS)
    elsewhere_T = jnp.zeros(20)  # the normaliser over all shards
    dh_TD, dw_VD, _ = backward(h_TD, w_VD, None, id_TS, elsewhere_T, dlse_T, dz_TS.astype(np.float32), **keywords)
    assert not np.any(dh_TD)
    assert not np.any(dw_VD)


def test_shards_of_the_vocabulary_add_up_to_the_whole():
    problem = Problem(T=60, D=32, V=256, S=12)
    h_TD, w_VD, _, id_TS, dlse_T, dz_TS = problem.arrays()
    id_TS, dz_TS = np.where(id_TS < 250, id_TS, NO_ID), dz_TS.astype(np.float32)
    keywords = dict(blocks=BLOCKS, interpret=FAST)
    whole_lse_T, whole_z_TS = forward(h_TD, w_VD, None, id_TS, vocab_size=250, **keywords)
    shards = [
        (w_VD[first : first + 128], np.where(id_TS == NO_ID, NO_ID, id_TS - first), 250 - first) for first in (0, 128)
    ]
    parts = [forward(h_TD, w, None, id, vocab_size=size, **keywords) for w, id, size in shards]
    lse_T = jax.nn.logsumexp(jnp.stack([lse for lse, _ in parts]), axis=0)
    np.testing.assert_allclose(lse_T, whole_lse_T, atol=8 * EPS * np.abs(whole_lse_T).max())
    np.testing.assert_array_equal(sum(z for _, z in parts), whole_z_TS)

    whole = backward(h_TD, w_VD, None, id_TS, lse_T, dlse_T, dz_TS, vocab_size=250, **keywords)
    dh, dw, _ = zip(
        *(backward(h_TD, w, None, id, lse_T, dlse_T, dz_TS, vocab_size=size, **keywords) for w, id, size in shards),
        strict=True,
    )
    np.testing.assert_allclose(sum(dh), whole[0], atol=32 * EPS * np.abs(whole[0]).max())
    np.testing.assert_array_equal(jnp.concatenate(dw), whole[1])


def test_input_that_no_kernel_can_take_is_refused_in_a_sentence():
    h_TD, w_VD, _, id_TS, *_ = Problem(T=20, D=16, V=256, S=4).arrays()
    with pytest.raises(InputError, match=r"h is float32 and w is bfloat16: give both in one type"):
        forward(h_TD, w_VD.astype(jnp.bfloat16), None, id_TS, vocab_size=256, blocks=BLOCKS)
    with pytest.raises(InputError, match=r"at D=16 these blocks need .* pass blocks=\.\.\. with smaller ones"):
        forward(h_TD, w_VD, None, id_TS, vocab_size=256, blocks=dataclasses.replace(BLOCKS, vmem_bytes=1000))
    with pytest.raises(InputError, match=r"no block sizes are known for 'cpu'"):
        statistics(jnp.zeros((20, 256)), id_TS)
