"""FLOP accounting against the published table of models and hand counts."""

import pytest

from jaxdistill.scaling import flops
from jaxdistill.scaling.flops import BUSBRIDGE_FAMILY


def published_shape(layers):
    """(N, width) of a model of Table 13: width 128 a layer, a gated MLP of 8/3 the width rounded up to 128."""
    width = 128 * layers
    hidden = -(-8 * width // (3 * 128)) * 128
    return layers * (4 * width**2 + 3 * width * hidden + 2 * width + 256) + width, width


@pytest.mark.parametrize("layers, N, N_total", [(8, 102_779_904, 136_334_336), (34, 7_746_729_728, None)])
def test_the_published_shapes_have_the_published_sizes(layers, N, N_total):
    own, width = published_shape(layers)
    assert own == N
    assert N_total is None or own + 32768 * width == N_total


@pytest.mark.parametrize(
    "layers, gigaflops",
    [
        (8, 0.3398),
        (9, 0.4471),
        (10, 0.5853),
        (11, 0.7505),
        (14, 1.415),
        (17, 2.397),
        (21, 4.280),
        (34, 16.99),
        (40, 27.23),
    ],
)
def test_forward_flops_match_the_published_table(layers, gigaflops):
    N, width = published_shape(layers)
    assert flops.forward_flops(N, layers, width, 4096, 32768) / 1e9 == pytest.approx(gigaflops, rel=1e-3)


@pytest.mark.parametrize("N, gigaflops", [(3e8, 0.83555), (1e9, 2.45439), (3e9, 6.85314), (1e10, 21.75026)])
def test_the_closed_form_matches_the_published_values(N, gigaflops):
    assert flops.family_flops(N, BUSBRIDGE_FAMILY) / 1e9 == pytest.approx(gigaflops, abs=1e-5)


def test_the_closed_form_is_exact_for_the_shape_it_was_derived_from():
    layers, width = 12, 12 * 128
    N = 12 * layers * width**2
    exact = flops.forward_flops(N, layers, width, 4096, 32768)
    assert flops.family_flops(N, BUSBRIDGE_FAMILY) == pytest.approx(exact, rel=1e-12)


def test_attention_is_counted_causally():
    """Logits and values of one query: 2 * 2 * width FLOPs for each of context / 2 keys, in every layer."""
    without = flops.forward_flops(1000, 3, 16, 0, 50)
    assert flops.forward_flops(1000, 3, 16, 64, 50) - without == 3 * 2 * 2 * 16 * 64 / 2


def test_distillation_pays_for_what_its_deltas_say():
    free = flops.distillation_flops(10.0, 7.0, 100.0, 5.0, delta_logits=0, delta_pretraining=0)
    online = flops.distillation_flops(10.0, 7.0, 100.0, 5.0, delta_logits=1, delta_pretraining=0)
    trained = flops.distillation_flops(10.0, 7.0, 100.0, 5.0, delta_logits=0, delta_pretraining=0.5)
    assert free == flops.training_flops(10.0, 7.0) == 210
    assert online - free == 100 * 7
    assert trained - free == 0.5 * 3 * 100 * 5
    assert flops.student_flops(1e9, 7.0, BUSBRIDGE_FAMILY) == pytest.approx(
        21 * flops.family_flops(1e9, BUSBRIDGE_FAMILY)
    )
