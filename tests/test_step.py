"""One step: exact accumulation, exact means, and who is changed by it."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdistill.data.windows import Batch
from jaxdistill.losses import reduce
from jaxdistill.losses.combiners import GradNorm
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.z_loss import ZLoss
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.optim import AdamW
from jaxdistill.step import init_state, make_eval, make_step, micro_batches

VOCAB_SIZE, B, L = 37, 8, 10
STUDENT = Transformer(Config(VOCAB_SIZE, 2, 16, 2, 8, 24, vocab_multiple=8))
TEACHER = Transformer(Config(VOCAB_SIZE, 1, 24, 3, 8, 32, vocab_multiple=1))
# Adam divides by |g| + eps: at this eps a gradient that is off by a rounding moves no parameter by more than that.
OPTIM = AdamW(eps=0.1, weight_decay=0.0)
RATES = {"learning_rate": np.float32(0.01), "decay": np.float32(0)}
CE = Objective.of({"ce": Term(CrossEntropy())})
DISTIL = Objective.of({"kl": Term(ForwardKL(2.0)), "ce": Term(CrossEntropy()), "z": Term(ZLoss())})
KL = Objective.of({"kl": Term(ForwardKL())})
COEF = {"kl": 1.0, "ce": 0.3, "z": 1e-3}
U = 2.0**-24


def random_batch(number=0, weight_BL=None) -> Batch:
    """Two documents a row. Weights are uneven; rows 1 and 5, a whole micro-batch of four, are empty."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(VOCAB_SIZE, size=(B, L + 1)).astype(np.int32)
    if weight_BL is None:
        weight_BL = rng.choice([0.0, 0.5, 1.0, 3.0], size=(B, L)) * np.arange(B)[:, None]
        weight_BL[[1, 5]] = 0
    segment_BL = np.repeat([[1] * 6 + [2] * 4], B, axis=0).astype(np.int32)
    position_BL = np.repeat([[*range(6), *range(4)]], B, axis=0).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weight_BL.astype(np.float32), segment_BL, position_BL)


@jax.jit
def fresh(key):
    return init_state(STUDENT, OPTIM, key)


def seed(number):
    return jax.random.key(number, impl="rbg")  # whose draws compile in a third of the time


@pytest.fixture(scope="module")
def state():
    return fresh(seed(0))


@pytest.fixture(scope="module")
def teacher_params():
    return {"teacher": jax.jit(TEACHER.init)(seed(1))}


@functools.cache
def compiled_step(objective, teacher=None, accumulate=1, optim=OPTIM, donate=()):
    teachers = {} if teacher is None else {"teacher": teacher}
    step = make_step(STUDENT, optim, objective, teachers=teachers, accumulate=accumulate)
    return jax.jit(step, donate_argnums=donate)


def take_step(state, teacher_params, batch, *, objective=DISTIL, coef=COEF, rates=RATES, accumulate=1):
    """One compiled step of the student; with no teacher parameters, without a teacher."""
    teacher = TEACHER if teacher_params else None
    return compiled_step(objective, teacher, accumulate)(state, teacher_params, batch, rates, coef)


def assert_trees_close(got, expected, tolerance):
    """Every array is off by at most `tolerance` of its norm."""
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(np.asarray(one) - other) <= tolerance * np.linalg.norm(other)


@functools.partial(jax.jit, static_argnums=0)
def all_logits(model, params, batch):
    h_BLD, _ = model.hidden(params, batch.tokens_BL, batch.segment_BL, batch.position_BL)
    return model.head(params, h_BLD).logits()[..., :VOCAB_SIZE]


@jax.jit
@jax.value_and_grad
def plain_gradient(params, batch):
    """The mean cross-entropy over all logits at once, by optax."""
    z_BLV = all_logits(STUDENT, params, batch)
    loss_BL = optax.softmax_cross_entropy_with_integer_labels(z_BLV, batch.label_BL)
    return jnp.sum(loss_BL * batch.weight_BL) / jnp.sum(batch.weight_BL)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_gradient_is_that_of_the_mean_over_all_tokens_however_the_batch_is_cut(state, accumulate):
    batch = random_batch()
    assert accumulate < 4 or not micro_batches(batch, 4).weight_BL[1].any()
    after, metrics = take_step(state, {}, batch, objective=CE, coef={"ce": 1.0}, accumulate=accumulate)
    loss, gradient = plain_gradient(state.params, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    clipped = jax.tree.map(lambda g: g / max(1.0, optax.tree.norm(gradient)), gradient)
    # Adam's first moment after one step is (1 - b1) g; a gradient is a sum over the 80 tokens through 2 layers
    assert_trees_close(after.opt[1].mu, jax.tree.map(lambda g: 0.1 * g, clipped), 2 * 10 * 2 * math.sqrt(80) * U)


def test_accumulation_changes_neither_the_update_nor_the_metrics(state, teacher_params):
    whole, whole_metrics = take_step(state, teacher_params, random_batch())
    parts, parts_metrics = take_step(state, teacher_params, random_batch(), accumulate=4)
    moved = jax.tree.map(jnp.subtract, whole.params, state.params)
    assert all(np.any(x) for x in jax.tree.leaves(moved))
    parts_moved = jax.tree.map(jnp.subtract, parts.params, state.params)
    # the difference to a parameter of size 1 to 4 is itself rounded by 4 u, and a step here is some 0.01 * 0.1
    assert_trees_close(parts_moved, moved, 4 * U / 1e-3)
    assert_trees_close(parts.opt, whole.opt, 2 * 10 * 2 * math.sqrt(80) * U)
    chex.assert_trees_all_close(parts_metrics, whole_metrics, rtol=1e-5)


def test_micro_batches_share_out_all_rows():
    rows_B = np.arange(B)
    parts = micro_batches({"row_B": rows_B, "x_BL": rows_B[:, None] * np.ones(L)}, 4)
    assert parts["row_B"].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert np.array_equal(parts["x_BL"][..., 0], parts["row_B"]) and parts["x_BL"].shape == (4, 2, L)


@pytest.mark.parametrize("factor", [2.0**-10, 8.0])
def test_one_factor_on_all_weights_changes_neither_gradient_nor_loss(state, factor):
    batch = random_batch()
    scaled = dataclasses.replace(batch, weight_BL=batch.weight_BL * np.float32(factor))
    (one, metrics), (other, scaled_metrics) = (
        take_step(state, {}, b, objective=CE, coef={"ce": 1.0}) for b in (batch, scaled)
    )
    chex.assert_trees_all_close(other.opt, one.opt, rtol=1e-5, atol=1e-7)
    for name in ("ce", "loss", "grad_norm"):
        np.testing.assert_allclose(scaled_metrics[name], metrics[name], rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_in_which_nothing_counts_changes_no_parameter(state, teacher_params, accumulate):
    empty = random_batch(weight_BL=np.zeros((B, L)))
    empty = dataclasses.replace(empty, label_BL=np.full((B, L), -100, np.int32))
    after, metrics = take_step(state, teacher_params, empty, accumulate=accumulate)
    chex.assert_trees_all_equal(after.params, state.params)
    assert after.step == 1 and set(metrics) == {"kl", "ce", "z", "loss", "tokens", "grad_norm"}
    assert all(value == 0 for value in metrics.values())


def test_weight_decay_alone_moves_the_parameters_of_an_empty_batch(state):
    empty, rates = random_batch(weight_BL=np.zeros((B, L))), RATES | {"decay": np.float32(0.25)}
    after, _ = take_step(state, {}, empty, objective=CE, coef={"ce": 1.0}, rates=rates)
    np.testing.assert_array_equal(after.params["embed_VD"], 0.75 * state.params["embed_VD"])
    np.testing.assert_array_equal(after.params["norm_D"], state.params["norm_D"])


def test_metrics_are_the_exact_weighted_means_and_the_loss_their_sum(state, teacher_params):
    batch = random_batch()
    _, metrics = take_step(state, teacher_params, batch, accumulate=4)
    z_BLV = np.asarray(all_logits(STUDENT, state.params, batch), np.float64)
    z_teacher_BLV = np.asarray(all_logits(TEACHER, teacher_params["teacher"], batch), np.float64)
    lse_BL = np.log(np.exp(z_BLV).sum(-1))
    logq_BLV, logp_BLV = (x / 2 - np.log(np.exp(x / 2).sum(-1, keepdims=True)) for x in (z_BLV, z_teacher_BLV))
    expected = {
        "ce": lse_BL - np.take_along_axis(z_BLV, batch.label_BL[..., None], axis=-1)[..., 0],
        "kl": 4 * (np.exp(logp_BLV) * (logp_BLV - logq_BLV)).sum(-1),
        "z": lse_BL**2,
    }
    expected = {name: np.average(value_BL, weights=batch.weight_BL) for name, value_BL in expected.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], sum(COEF[name] * value for name, value in expected.items()), rtol=1e-5)
    assert metrics["tokens"] == batch.weight_BL.sum()


def test_the_teacher_is_neither_changed_nor_donated_nor_part_of_the_state(state, teacher_params):
    before = jax.tree.map(np.array, teacher_params)
    step = compiled_step(KL, TEACHER, optim=AdamW(), donate=0)
    after = donated = jax.tree.map(jnp.copy, state)
    for _ in range(2):
        after, _ = step(after, teacher_params, random_batch(), RATES, {"kl": 1.0})
    assert donated.params["embed_VD"].is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves(teacher_params))
    chex.assert_trees_all_equal(teacher_params, before)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_no_gradient_of_the_teacher_is_formed(state, teacher_params):
    # With it would come a matmul whose result has the shape of the teacher's embedding, which the forward pass has not.
    def matmuls(function):
        lines = str(jax.make_jaxpr(function)(teacher_params)).splitlines()
        return sum(f"f32[{VOCAB_SIZE},24] = dot_general" in line for line in lines)

    def step(teacher_params, implementation):
        take = make_step(STUDENT, OPTIM, DISTIL, teachers={"teacher": TEACHER}, implementation=implementation)
        return take(state, teacher_params, random_batch(), RATES, COEF)

    assert matmuls(jax.grad(lambda params: step(params, "reference")[1]["loss"])) > 0  # so the search can find one
    assert matmuls(lambda params: step(params, "reference")) == matmuls(lambda params: step(params, "chunked")) == 0


def test_a_student_at_its_teacher_stays_there(state):
    _, metrics = compiled_step(KL, STUDENT)(state, {"teacher": state.params}, random_batch(), RATES, {"kl": 1.0})
    assert metrics["kl"] == 0 and metrics["grad_norm"] < 1e-6


def test_a_student_learns_its_teachers_distribution_on_a_batch(state, teacher_params):
    step, batch = compiled_step(KL, TEACHER, optim=AdamW(), donate=0), random_batch(weight_BL=np.ones((B, L)))
    state, losses = jax.tree.map(jnp.copy, state), []
    for _ in range(150):
        state, metrics = step(state, teacher_params, batch, RATES, {"kl": 1.0})
        losses.append(float(metrics["kl"]))
    assert losses[0] > 0.5 and losses[-1] < 0.02 * losses[0]


def test_one_batch_can_be_learned_by_heart(state):
    step, batch = compiled_step(CE, optim=AdamW()), random_batch(weight_BL=np.ones((B, L)))
    losses = []
    for _ in range(150):
        state, metrics = step(state, {}, batch, RATES, {"ce": 1.0})
        losses.append(float(metrics["ce"]))
    # positions 0 and 6 begin a document, where the same token may have two successors; the lowest, since at a constant
    # rate Adam leaves the optimum now and then
    assert min(losses) < 0.1 < math.log(VOCAB_SIZE)
    assert state.step == 150


def test_neither_schedules_nor_step_numbers_nor_data_compile_anything_anew(state, teacher_params):
    step, optim = compiled_step(DISTIL, TEACHER), AdamW(warmup=2)
    for number in range(4):
        coef = {"kl": 1.0 - number / 4, "ce": number / 4, "z": 1e-4}
        state, _ = step(state, teacher_params, random_batch(number), optim.rates(number, 4), coef)
    assert step._cache_size() == 1 and state.step == 4


def test_sums_of_an_evaluation_add_to_the_metrics_of_the_step(state, teacher_params):
    _, metrics = take_step(state, teacher_params, random_batch())
    evaluate = jax.jit(make_eval(STUDENT, DISTIL, teachers={"teacher": TEACHER}))
    halves = [jax.tree.map(lambda x, rows=rows: x[rows], random_batch()) for rows in (slice(0, 4), slice(4, 8))]
    totals = reduce.add(*(evaluate(state.params, teacher_params, half) for half in halves))
    means = reduce.means(totals)
    for name in ("kl", "ce", "z", "tokens"):
        np.testing.assert_allclose(means[name], metrics[name], rtol=1e-5)


def test_a_fresh_state_has_taken_no_step_and_depends_on_its_key_alone(state):
    again, other = fresh(seed(0)), fresh(seed(1))
    chex.assert_trees_all_equal(again, state)
    assert state.step == 0 and state.step.dtype == jnp.int32
    assert not np.array_equal(other.params["embed_VD"], state.params["embed_VD"])


def test_a_combiner_sees_the_gradients_of_all_tokens_however_the_batch_is_cut(state, teacher_params):
    objective, optim = (
        Objective.of({name: term for name, term in DISTIL.terms if name != "z"}),
        AdamW(eps=0.1, clip=1e9),
    )

    def take(accumulate, combine):
        step = make_step(
            STUDENT, optim, objective, teachers={"teacher": TEACHER}, accumulate=accumulate, combine=combine
        )
        begun = dataclasses.replace(state, control={"combine": combine.init(objective.names)} if combine else {})
        return jax.jit(step)(begun, teacher_params, random_batch(), RATES, COEF)

    (plain, _), (whole, metrics), (parts, parts_metrics) = (
        take(number, combine) for number, combine in ((1, None), (1, GradNorm()), (4, GradNorm()))
    )
    # weights begin at 1, and Adam's first moment is linear in the gradient
    assert metrics["weight/kl"] == metrics["weight/ce"] == 1
    assert_trees_close(whole.opt[1].mu, plain.opt[1].mu, 1e-5)
    assert_trees_close(parts.opt[1].mu, whole.opt[1].mu, 1e-5)
    chex.assert_trees_all_close(parts_metrics, metrics, rtol=1e-5)
    chex.assert_trees_all_close(parts.control, whole.control, rtol=1e-4)
    assert whole.control["combine"]["weight/kl"] != 1
