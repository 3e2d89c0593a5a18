"""The streamed head against its definition in float64 NumPy, with every gradient written out by hand.

Tolerances are forward error bounds, element by element (Higham, *Accuracy and Stability of Numerical Algorithms*,
2nd ed., section 3.1): a dot product of n terms is off by at most g(n) sum |a_i b_i|, and what follows passes the error
on to first order. For g we take 2 sqrt(n) u, not the worst case n u, since roundings do not conspire (Higham & Mary
2019). u is 2^-24 in fp32; where a gradient enters a bf16 matmul it is rounded once more, by 2^-8.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import InputError
from jaxdistill.head import Head
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.linear_heads import api, stream
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.targets import Dense, Labels
from jaxdistill.losses.z_loss import ZLoss

U = 2.0**-24
T = 2.0
OBJECTIVE = Objective.of({"ce": Term(CrossEntropy()), "kl": Term(ForwardKL(temperature=T)), "z": Term(ZLoss())})
COEF = {"ce": 0.7, "kl": 1.3, "z": 0.01}
SMALL, LARGE = 2049, 151_936  # no power of two divides the first; the second is Qwen's
CASE = {"vocab_size": SMALL, "shape": (2, 7, 8), "spread": 1.0}


def g(n: int) -> float:
    return 2 * math.sqrt(n) * U


def random_head(rng, shape, vocab_size, spread, *, shift=0.0, padding=0, dtype="float32", bias=True, **options) -> Head:
    """A head whose logits have a standard deviation of about `spread` and a mean of `shift`; padded rows are large."""
    B, L, D = shape
    h_BLD, w_VD = rng.normal(size=(B, L, D)), rng.normal(size=(vocab_size + padding, D)) * spread / math.sqrt(D)
    h_BLD[..., 0], w_VD[:, 0] = 1, shift
    w_VD[vocab_size:] = 1000
    bias_V = jnp.asarray(rng.normal(size=vocab_size + padding), jnp.float32) if bias else None
    return Head(jnp.asarray(h_BLD, dtype), jnp.asarray(w_VD, dtype), bias_V, vocab_size=vocab_size, **options)


def random_case(seed, vocab_size, shape, spread, *, teacher_padding=0, **options):
    """A student's head, its target from a teacher of another width and spread, and uneven weights."""
    rng = np.random.default_rng(seed)
    B, L, D = shape
    student = random_head(rng, shape, vocab_size, spread, **options)
    teacher = random_head(rng, (B, L, D + 3), vocab_size, 1.5 * spread, padding=teacher_padding)
    label_BL = jnp.asarray(rng.integers(vocab_size, size=(B, L)), jnp.int32)
    weight_BL = jnp.asarray(rng.choice([0.0, 0.5, 1.0, 2.0], size=(B, L)), jnp.float32).at[0, 0].set(1)
    return student, Dense(label_BL, teacher), weight_BL


@dataclasses.dataclass
class Exact:
    """A float64 array and a bound on the error that fp32 arithmetic may make in it."""

    value: np.ndarray
    error: np.ndarray

    def check(self, got, what: str, sharp: float = 2e-3):
        """`got` is within the bound, and the bound is worth having: below `sharp` of the size of the array itself."""
        got = np.asarray(got, np.float64)
        assert got.shape == self.value.shape, what
        excess = np.abs(got - self.value) - self.error
        assert np.all(excess <= 1e-30), (
            f"{what}: off by {excess.max():.3g} more than the bound of {self.error.max():.3g}"
        )
        assert np.linalg.norm(self.error) <= sharp * np.linalg.norm(self.value), f"{what}: the bound says nothing"


def exact_logits(head: Head) -> Exact:
    """Logits over the real vocabulary: padded rows do not exist here."""
    h, w = np.asarray(head.h_BLD, np.float64), np.asarray(head.w_VD, np.float64)[: head.vocab_size]
    bias = 0.0 if head.bias_V is None else np.asarray(head.bias_V, np.float64)[: head.vocab_size]
    x = head.scale * (h @ w.T) + bias
    error = (g(h.shape[-1]) + 3 * U) * (head.scale * (np.abs(h) @ np.abs(w).T) + np.abs(bias))
    if head.softcap is None:
        return Exact(x, error)
    z = head.softcap * np.tanh(x / head.softcap)
    return Exact(z, error * (1 - (z / head.softcap) ** 2) + 8 * U * np.abs(z))


def exact_log_softmax(z: Exact) -> tuple[Exact, Exact]:
    """(log softmax, log-normaliser [..., 1])."""
    top = z.value.max(-1, keepdims=True)
    lse = top + np.log(np.exp(z.value - top).sum(-1, keepdims=True))
    logp = z.value - lse
    inner = (np.exp(logp) * (z.error + U * (top - z.value))).sum(-1, keepdims=True)
    lse_error = inner + g(z.value.shape[-1]) + 8 * U + U * np.abs(lse)
    return Exact(logp, z.error + lse_error + U * np.abs(logp)), Exact(lse, lse_error)


def definition(student: Head, target: Dense, weight_BL) -> dict[str, Exact]:
    """What `weighted_sum` and its gradient give for OBJECTIVE and COEF: terms per token, total, dh, dw, dbias.

    d ce/dz = p - 1[label], d kl/dz = T (q - q_teacher) at temperature T, d z/dz = 2 lse p.
    """
    weight, labels = np.asarray(weight_BL, np.float64)[..., None], np.asarray(target.label_BL)[..., None]
    z = exact_logits(student)
    logp, lse = exact_log_softmax(z)
    p = np.exp(logp.value)
    hot = np.arange(student.vocab_size) == labels
    ce = Exact(-(logp.value * hot).sum(-1), (logp.error * hot).sum(-1))
    square = Exact(lse.value[..., 0] ** 2, (2 * np.abs(lse.value) * lse.error + 2 * U * lse.value**2)[..., 0])

    z_teacher = exact_logits(target.head)
    logq, _ = exact_log_softmax(Exact(z.value / T, z.error / T))
    logt, _ = exact_log_softmax(Exact(z_teacher.value / T, z_teacher.error / T))
    q, t, difference = np.exp(logq.value), np.exp(logt.value), logt.value - logq.value
    kl_error = t * (logt.error + logq.error + (logt.error + g(student.vocab_size) + 8 * U) * np.abs(difference))
    kl = Exact(T**2 * (t * difference).sum(-1), T**2 * kl_error.sum(-1))

    dz = COEF["ce"] * (p - hot) + COEF["kl"] * T * (q - t) + COEF["z"] * 2 * lse.value * p
    dz_error = (COEF["ce"] + COEF["z"] * 2 * np.abs(lse.value)) * p * (logp.error + 8 * U)
    dz_error += COEF["kl"] * T * (q * (logq.error + 8 * U) + t * (logt.error + 8 * U)) + COEF["z"] * 2 * p * lse.error
    dz_error += 4 * U * (COEF["ce"] * hot + np.abs(dz))
    slope, slope_error = 1.0, 0.0
    if student.softcap is not None:
        ratio = z.value / student.softcap
        slope, slope_error = 1 - ratio**2, 2 * np.abs(ratio) * z.error / student.softcap + 8 * U
    dx, dx_error = weight * dz * slope, weight * (dz_error * slope + np.abs(dz) * slope_error)

    h, w = np.asarray(student.h_BLD, np.float64), np.asarray(student.w_VD, np.float64)[: student.vocab_size]
    u_matmul = 2.0**-8 if student.h_BLD.dtype == jnp.bfloat16 else U
    entering = dx_error + (u_matmul + 2 * U) * np.abs(dx)
    B, L, V = dx.shape
    into_h = (entering + g(V) * np.abs(dx)) @ np.abs(w)
    into_w = np.einsum("blv,bld->vd", entering + g(B * L) * np.abs(dx), np.abs(h))
    dh, dw = student.scale * dx @ w, student.scale * np.einsum("blv,bld->vd", dx, h)
    rows = student.w_VD.shape[0] - student.vocab_size
    total = weight[..., 0] * (COEF["ce"] * ce.value + COEF["kl"] * kl.value + COEF["z"] * square.value)
    total_error = weight[..., 0] * (COEF["ce"] * ce.error + COEF["kl"] * kl.error + COEF["z"] * square.error)
    gradient = {
        "dh_BLD": Exact(dh, student.scale * into_h + 2 * u_matmul * np.abs(dh)),
        "dw_VD": Exact(
            *(np.pad(a, ((0, rows), (0, 0))) for a in (dw, student.scale * into_w + 2 * u_matmul * np.abs(dw)))
        ),
        "dbias_V": Exact(
            *(np.pad(a, (0, rows)) for a in (dx.sum((0, 1)), (dx_error + g(B * L) * np.abs(dx)).sum((0, 1))))
        ),
    }
    counts = weight[..., 0] != 0
    values = {name: Exact(v.value * counts, v.error * counts) for name, v in (("ce", ce), ("kl", kl), ("z", square))}
    return values | gradient | {"total": Exact(total.sum(), total_error.sum() + g(B * L) * np.abs(total).sum())}


@jax.jit(static_argnames=("implementation", "positions", "objective"))
def run(head, target, weight_BL, implementation="chunked", positions=3, objective=OBJECTIVE):
    """The sum and its gradients; "recompute" is a mode of the chunked implementation."""
    how = {"mode": "recompute"} if implementation == "recompute" else {"implementation": implementation}

    def loss(head):
        return api.weighted_sum(objective, head, target, weight_BL, COEF, positions=positions, **how)

    (total, values), gradient = jax.value_and_grad(loss, has_aux=True)(head)
    gradients = {"dh_BLD": gradient.h_BLD, "dw_VD": gradient.w_VD}
    return {"total": total} | values | gradients | ({} if head.bias_V is None else {"dbias_V": gradient.bias_V})


def check(case, **options):
    expected, sharp = definition(*case), 0.1 if case[0].h_BLD.dtype == jnp.bfloat16 else 2e-3
    for name, got in run(*case, **options).items():
        expected[name].check(got, name, sharp)


@pytest.mark.parametrize("implementation", ["chunked", "recompute", "reference"])
@pytest.mark.parametrize("shift", [0.0, 40.0, -40.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 30.0])
def test_values_and_gradients_are_those_of_the_definition(implementation, spread, shift):
    check(random_case(0, **CASE | {"spread": spread, "shift": shift}), implementation=implementation)


@pytest.mark.parametrize(("spread", "shift"), [(0.1, 0.0), (1.0, -40.0), (10.0, 40.0), (30.0, 0.0)])
@pytest.mark.parametrize("implementation", ["chunked", "recompute"])
def test_a_vocabulary_of_151936_loses_no_accuracy(spread, shift, implementation):
    check(random_case(1, LARGE, (1, 3, 8), spread, shift=shift), positions=2, implementation=implementation)


@pytest.mark.parametrize("positions", [1, 2, 4, 5, 6, 7, 100])
def test_any_number_of_positions_in_a_chunk_gives_the_same_sum(positions):
    check(random_case(2, **CASE | {"vocab_size": 131}), positions=positions)


@pytest.mark.parametrize(
    "options",
    [{"softcap": 5.0}, {"scale": 0.125}, {"bias": False}, {"softcap": 2.0, "scale": 3.0, "bias": False}],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["chunked", "recompute", "reference"])
def test_scale_bias_and_softcap_enter_as_written(implementation, options):
    check(random_case(3, **CASE | {"vocab_size": 131}, **options), implementation=implementation)


@pytest.mark.parametrize(("padding", "teacher_padding"), [(127, 0), (0, 63), (127, 63), (63, 127)])
@pytest.mark.parametrize("implementation", ["chunked", "recompute", "reference"])
def test_padded_vocabulary_never_counts_however_each_side_is_padded(implementation, padding, teacher_padding):
    case = random_case(4, **CASE, padding=padding, teacher_padding=teacher_padding)
    check(case, implementation=implementation)
    got = run(*case, implementation=implementation)
    assert not np.any(got["dw_VD"][SMALL:]) and not np.any(got["dbias_V"][SMALL:])


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_bfloat16_rounds_only_what_enters_a_matmul(spread):
    check(random_case(5, **CASE | {"spread": spread}, dtype="bfloat16"))


def test_float32_weights_under_bfloat16_activations_get_float32_gradients():
    head, target, weight_BL = random_case(5, **CASE, dtype="bfloat16")
    gradient = run(dataclasses.replace(head, w_VD=head.w_VD.astype(jnp.float32)), target, weight_BL)
    assert gradient["dw_VD"].dtype == jnp.float32 and gradient["dh_BLD"].dtype == jnp.bfloat16
    assert gradient["total"].dtype == gradient["kl"].dtype == jnp.float32


@pytest.mark.parametrize("implementation", ["chunked", "recompute", "reference"])
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, 1e38])
def test_a_token_of_weight_zero_counts_nowhere_whatever_it_holds(implementation, rubbish):
    head, target, weight_BL = random_case(6, **CASE | {"vocab_size": 131})
    expected = definition(head, target, weight_BL)
    off_BL = np.asarray(weight_BL) == 0
    assert 0 < off_BL.sum() < off_BL.size
    teacher = dataclasses.replace(target.head, h_BLD=jnp.where(off_BL[..., None], rubbish, target.head.h_BLD))
    target = Dense(jnp.where(off_BL, -100, target.label_BL), teacher)
    head = dataclasses.replace(head, h_BLD=jnp.where(off_BL[..., None], rubbish, head.h_BLD))
    got = run(head, target, weight_BL, implementation=implementation)
    for name in got:
        expected[name].check(got[name], name)
    assert not np.any(got["dh_BLD"][off_BL])
    assert all(not np.any(got[name][off_BL]) for name in COEF)


@pytest.mark.parametrize("implementation", ["chunked", "recompute", "reference"])
def test_a_batch_in_which_nothing_counts_is_exactly_zero(implementation):
    head, target, weight_BL = random_case(7, **CASE | {"vocab_size": 131})
    head = dataclasses.replace(head, h_BLD=jnp.full_like(head.h_BLD, jnp.nan))
    got = run(head, target, jnp.zeros_like(weight_BL), implementation=implementation)
    assert all(np.array_equal(x, np.zeros_like(x)) for x in got.values())


def test_a_factor_on_the_total_is_a_factor_on_its_gradient():
    head, target, weight_BL = random_case(8, **CASE | {"vocab_size": 131})

    @jax.jit
    @jax.grad
    def gradient(head, factor):
        return factor * api.weighted_sum(OBJECTIVE, head, target, weight_BL, COEF, positions=2)[0]

    for one, four in zip(jax.tree.leaves(gradient(head, 1.0)), jax.tree.leaves(gradient(head, 4.0)), strict=True):
        np.testing.assert_array_equal(4 * one, four)  # a power of two is exact


@pytest.mark.parametrize("implementation", ["chunked", "recompute", "reference"])
def test_the_values_of_the_terms_carry_no_gradient(implementation):
    head, target, weight_BL = random_case(8, **CASE | {"vocab_size": 131})

    @jax.jit
    @jax.grad
    def gradient(head):
        how = {"mode": "recompute"} if implementation == "recompute" else {"implementation": implementation}
        _, values = api.weighted_sum(OBJECTIVE, head, target, weight_BL, COEF, **how)
        return values["ce"].sum()

    assert not any(np.any(x) for x in jax.tree.leaves(gradient(head)))


def largest_buffer(compiled) -> int:
    """Elements of the largest array anywhere in the compiled program."""
    return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[(\d[\d,]*)\]", compiled.as_text()))


def compile_at(length: int, implementation: str):
    case = random_case(9, SMALL, (2, length, 8), 1.0, padding=127)
    return run.lower(*case, implementation=implementation, positions=4).compile()


def test_no_buffer_of_the_compiled_step_is_as_large_as_all_logits():
    length, rows = 32, SMALL + 127  # chunks of 4 positions; the teacher's width is 11
    assert largest_buffer(compile_at(length, "reference")) >= 2 * length * SMALL  # so the search can find one
    assert largest_buffer(compile_at(length, "chunked")) <= max(2 * 4 * rows, rows * 11)  # a chunk, or an embedding


def test_memory_grows_with_the_hidden_states_and_not_with_the_logits():
    short, long = (compile_at(length, "chunked").memory_analysis().temp_size_in_bytes for length in (32, 128))
    hidden_states = 4 * 2 * (128 - 32) * (8 + 11)  # bytes of what the extra positions of student and teacher hold
    assert long - short <= 4 * hidden_states < 4 * 2 * (128 - 32) * SMALL / 20


@pytest.mark.parametrize("sequences", [1, 8, 64, 4096])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "unheard of"])
@pytest.mark.parametrize("width", [16, 1024, 12288])
def test_the_default_chunk_holds_its_bound_or_a_single_position(monkeypatch, platform, sequences, width):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    positions = stream.default_positions(sequences, 2048, width)
    bound = max(width // 2, stream.CHUNK_TOKENS.get(platform, stream.CHUNK_TOKENS["gpu"]))
    assert 1 <= positions <= 2048
    assert positions == 1 or positions * sequences <= bound
    assert positions == 2048 or (positions + 1) * sequences > bound


def test_a_chunk_of_no_positions_is_refused():
    head, target, weight_BL = random_case(0, **CASE)
    with pytest.raises(InputError, match="positions is 0; a chunk takes at least 1"):
        api.weighted_sum(OBJECTIVE, head, target, weight_BL, COEF, positions=0)


def test_an_unknown_implementation_is_refused_by_name():
    head, target, weight_BL = random_case(0, **CASE)
    with pytest.raises(InputError, match="mode 'forward' has no implementation 'fused'"):
        api.weighted_sum(OBJECTIVE, head, target, weight_BL, COEF, implementation="fused")


def test_a_teacher_with_another_vocabulary_is_refused():
    head, _, weight_BL = random_case(0, **CASE)
    _, other, _ = random_case(0, **CASE | {"vocab_size": SMALL - 1})
    with pytest.raises(InputError, match=r"vocabulary of 2048 .* of 2049"):
        api.weighted_sum(OBJECTIVE, head, other, weight_BL, COEF)


def test_labels_need_no_teacher():
    head, target, weight_BL = random_case(10, **CASE)
    objective = Objective.of({"ce": Term(CrossEntropy())})
    got = run(head, Labels(target.label_BL), weight_BL, objective=objective)
    definition(head, target, weight_BL)["ce"].check(got["ce"], "ce")
