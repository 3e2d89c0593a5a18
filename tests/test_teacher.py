"""Teachers inside the step: what they keep, the references beside them, hidden states, controllers, token weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdistill.data.windows import Batch
from jaxdistill.errors import InputError
from jaxdistill.losses.cross_entropy import CrossEntropy
from jaxdistill.losses.forward_kl import ForwardKL
from jaxdistill.losses.hidden import Layers
from jaxdistill.losses.objective import Objective, Term
from jaxdistill.losses.states import CosineDistance, MeanSquare
from jaxdistill.losses.targets import Dense, Sampled, TopK
from jaxdistill.models.transformer import Config, Transformer
from jaxdistill.optim import AdamW
from jaxdistill.step import init_state, make_step, micro_batches
from jaxdistill.teacher import TEACHER, Draws, Online, Top, make_target, token_index

V, B, L = 37, 4, 10
STUDENT = Transformer(Config(V, 2, 16, 2, 8, 24, vocab_multiple=8))
MODEL = Transformer(Config(V, 3, 16, 2, 8, 32, vocab_multiple=1))
RATES = {"learning_rate": np.float32(0.01), "decay": np.float32(0)}


def seed(number):
    return jax.random.key(number, impl="rbg")


@pytest.fixture(scope="module")
def frozen():
    init = jax.jit(MODEL.init)
    return {TEACHER: init(seed(1)), "reference": init(seed(2))}


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(V, size=(B, L + 1)).astype(np.int32)
    ones = np.ones((B, L), np.int32)
    position = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    return Batch(tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, position)


def teacher_probabilities(frozen, batch, name=TEACHER):
    h_BLD, _ = MODEL.hidden(frozen[name], batch.tokens_BL, batch.segment_BL, batch.position_BL)
    return special.softmax(np.asarray(MODEL.head(frozen[name], h_BLD).logits(), np.float64)[..., :V], axis=-1)


def make(frozen, batch, keep=None, models=(TEACHER,), key=jax.random.key(5), **options):
    target = make_target(dict.fromkeys(models, MODEL), keep, **options)
    return jax.jit(target)({name: frozen[name] for name in models}, batch, key, token_index(batch))


def test_top_keeps_the_largest_probabilities_and_the_mass_of_the_others(frozen, batch):
    target, _ = make(frozen, batch, Top(5))
    p_BLV = teacher_probabilities(frozen, batch)
    assert isinstance(target, TopK)
    np.testing.assert_allclose(np.exp(target.logp_BLS), -np.sort(-p_BLV, axis=-1)[..., :5], rtol=1e-5)
    tail_BL = 1 - (-np.sort(-p_BLV, axis=-1))[..., :5].sum(-1)
    np.testing.assert_allclose(np.exp(target.logtail_BL), tail_BL, rtol=0, atol=2e-6)  # of one minus five roundings
    np.testing.assert_array_equal(target.label_BL, batch.label_BL)


def test_draws_are_unbiased_and_their_weights_sum_to_one(frozen, batch):
    p_BLV, mean_BLV, repeats = teacher_probabilities(frozen, batch), np.zeros((B, L, V)), 200
    target_of = jax.jit(make_target({TEACHER: MODEL}, Draws(8)))
    for number in range(repeats):
        target, _ = target_of(frozen, batch, jax.random.key(number), token_index(batch))
        assert isinstance(target, Sampled)
        np.testing.assert_allclose(np.sum(target.weight_BLS, axis=-1), 1, rtol=1e-6)
        held = np.asarray(target.weight_BLS) > 0
        b, position, _ = np.nonzero(held)
        np.add.at(
            mean_BLV, (b, position, np.asarray(target.id_BLS)[held]), np.asarray(target.weight_BLS)[held] / repeats
        )
    deviation = np.sqrt(p_BLV * (1 - p_BLV) / (8 * repeats))
    assert np.mean(((mean_BLV - p_BLV) / deviation) ** 2) == pytest.approx(1, abs=0.2)


def test_what_is_drawn_depends_on_the_step_and_the_token_and_not_on_how_a_batch_is_cut(frozen, batch):
    whole, _ = make(frozen, batch, Draws(8))
    parts = micro_batches((batch, token_index(batch)), 2)
    target_of = jax.jit(make_target({TEACHER: MODEL}, Draws(8)))
    for number in range(2):
        part, index_BL = jax.tree.map(lambda x, number=number: x[number], parts)
        drawn, _ = target_of(frozen, part, jax.random.key(5), index_BL)
        np.testing.assert_array_equal(drawn.id_BLS, np.asarray(whole.id_BLS)[number::2])
    other, _ = make(frozen, batch, Draws(8), key=jax.random.key(6))
    assert np.any(np.asarray(other.id_BLS) != np.asarray(whole.id_BLS))


def test_references_are_heads_beside_the_teachers(frozen, batch):
    target, _ = make(frozen, batch, models=(TEACHER, "reference"))
    assert isinstance(target, Dense) and set(target.references) == {"reference"}
    p_BLV = special.softmax(np.asarray(target.references["reference"].logits(), np.float64)[..., :V], axis=-1)
    np.testing.assert_allclose(p_BLV, teacher_probabilities(frozen, batch, "reference"), rtol=1e-4)


def train(objective, frozen, batch, steps=60, names=(TEACHER,), model=STUDENT, params=None, **options):
    """The metrics of every step."""
    optim = AdamW(weight_decay=0.0)
    controllers = options.get("controllers", {})
    state = jax.jit(lambda key: init_state(model, optim, key, controllers))(seed(0))
    if params is not None:
        state = dataclasses.replace(state, params=params)
    step = jax.jit(make_step(model, optim, Objective.of(objective), teachers=dict.fromkeys(names, MODEL), **options))
    coef = {name: np.float32(term.at(0, steps)) for name, term in objective.items()} | {"steps": np.float32(steps)}
    found = []
    for _ in range(steps):
        state, metrics = step(state, {name: frozen[name] for name in names}, batch, RATES, coef)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def test_hidden_states_are_learned_by_their_own_term(frozen, batch):
    objective = {"kl": Term(ForwardKL(), 0.0), "states": Term(Layers(CosineDistance(), ((0, 0), (-1, -1))))}
    found = train(objective, frozen, batch)
    assert found[0]["states"] > 0.5 and found[-1]["states"] < 0.3 * found[0]["states"]
    assert found[0]["loss"] == pytest.approx(found[0]["states"])


def test_a_student_that_is_its_teacher_has_equal_states_and_no_gradient(frozen, batch):
    objective = {"states": Term(Layers(MeanSquare(), ((0, 0), (2, 2))))}
    (metrics,) = train(objective, frozen, batch, steps=1, model=MODEL, params=jax.tree.map(jnp.copy, frozen[TEACHER]))
    assert metrics["states"] == metrics["grad_norm"] == 0


def test_states_of_a_teacher_that_is_not_there_are_refused(batch):
    with pytest.raises(InputError, match=r"hidden states of layer -1: set experiment\.teacher"):
        train({"ce": Term(CrossEntropy()), "states": Term(Layers(MeanSquare(), ((-1, -1),)))}, {}, batch, names=())


@dataclasses.dataclass(frozen=True)
class Countdown:
    """Halves at every step in which the loss is a number."""

    def init(self):
        return {"value": jnp.float32(1)}

    def value(self, state):
        return state["value"]

    def update(self, state, metrics, step, steps):
        return {"value": jnp.where(metrics["ce"] > 0, state["value"] / 2, state["value"])}


def test_a_controller_moves_with_the_steps_and_scales_the_terms_that_name_it(frozen, batch):
    objective = {"ce": Term(CrossEntropy()), "kl": Term(ForwardKL(), coef="fade")}
    found = train(objective, frozen, batch, steps=4, controllers={"fade": Countdown()})
    assert [metrics["fade"] for metrics in found] == [1, 0.5, 0.25, 0.125]
    for metrics in found:
        assert metrics["loss"] == pytest.approx(metrics["ce"] + metrics["fade"] * metrics["kl"], rel=1e-5)


@dataclasses.dataclass(frozen=True)
class Surprising:
    """Only the tokens that the student finds less likely than the mean."""

    def statistics(self):
        return {"ce": CrossEntropy()}

    def __call__(self, values, target, weight_BL, signals):
        return weight_BL * (values["ce"] > jnp.mean(values["ce"]))


def test_a_weight_chooses_tokens_by_what_it_asked_to_know(frozen, batch):
    objective = {"ce": Term(CrossEntropy(), weight=Surprising())}
    (metrics,) = train(objective, frozen, batch, steps=1)
    (plain,) = train({"ce": Term(CrossEntropy())}, frozen, batch, steps=1)
    assert metrics["ce"] == pytest.approx(plain["ce"]) and 0.3 * plain["loss"] < metrics["loss"] < plain["loss"]


def test_a_name_and_a_cut_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="cannot be called 'teacher'"):
        Online("a", references={"teacher": "b"})
    with pytest.raises(InputError, match="references compare whole distributions"):
        Online("a", keep=Top(4), references={"other": "b"})


def test_a_coefficient_of_a_controller_that_is_not_there_is_refused(supervised):
    objective = {"ce": Term(CrossEntropy(), coef="fade")}
    with pytest.raises(InputError, match=r"objective\.ce takes its coefficient from a controller 'fade', .* \(none\)"):
        dataclasses.replace(supervised, objective=objective)
    dataclasses.replace(supervised, objective=objective, controllers={"fade": Countdown()})
