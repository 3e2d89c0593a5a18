"""The ladder against Table 13 of arXiv 2502.08606, and its continuation to laptop sizes."""

import dataclasses

import pytest

from jaxdistill.errors import InputError
from jaxdistill.models import ladder
from jaxdistill.scaling.flops import forward_flops

# name: layers, width, mlp width, and in units of 1e9: N, N_total, forward FLOPs per token after eq. 69 and in full
TABLE = {
    "103M": (8, 1024, 2816, "0.1028", "0.1363", "0.3398", 0.3411),
    "143M": (9, 1152, 3072, "0.1434", "0.1811", "0.4471", 0.4487),
    "198M": (10, 1280, 3456, "0.1983", "0.2402", "0.5853", 0.587),
    "266M": (11, 1408, 3840, "0.2657", "0.3118", "0.7505", 0.7524),
    "546M": (14, 1792, 4864, "0.546", "0.6047", "1.415", 1.417),
    "975M": (17, 2176, 5888, "0.9755", "1.047", "2.397", 2.4),
    "1.82B": (21, 2688, 7168, "1.821", "1.909", "4.28", 4.284),
    "2.72B": (24, 3072, 8192, "2.718", "2.819", "6.241", 6.246),
    "4.82B": (29, 3712, 9984, "4.823", "4.944", "10.77", 10.78),
    "7.75B": (34, 4352, 11648, "7.747", "7.889", "16.99", 17),
    "12.6B": (40, 5120, 13696, "12.61", "12.78", "27.23", 27.24),
}


@pytest.mark.parametrize("name", TABLE)
def test_sizes_and_flops_are_those_of_the_paper_to_its_printed_precision(name):
    layers, width, mlp_width, N, N_total, flops, full_flops = TABLE[name]
    config = ladder.paper(ladder.PAPER_LAYERS[name])
    assert (config.num_layers, config.width, config.mlp_width) == (layers, width, mlp_width)
    assert f"{config.num_params / 1e9:.4g}" == N
    assert f"{config.num_params_total / 1e9:.4g}" == N_total
    approximate = forward_flops(config.num_params, layers, width, 4096, config.vocab_size) / 1e9
    assert f"{approximate:.4g}" == flops
    assert 0 < 1 - approximate / full_flops < 0.004  # the softmax, which eq. 69 leaves out


def test_the_names_of_the_paper_are_those_of_the_table():
    assert set(ladder.PAPER_LAYERS) == set(TABLE)


@pytest.mark.parametrize("layers", range(8, 41))
def test_a_rung_has_the_parameters_of_the_closed_form(layers):
    # N = L (4 d^2 + 3 d d_ff + 2 d + 256) + d, with d = 128 L and d_ff = 8/3 d rounded up to a multiple of 128
    config = ladder.paper(layers)
    d, d_ff = 128 * layers, -(-8 * layers // 3) * 128
    N = layers * (4 * d * d + 3 * d * d_ff + 2 * d + 256) + d
    assert (config.mlp_width, config.num_params, config.num_params_total) == (d_ff, N, N + 32_768 * d)
    assert config.num_heads * 128 == d and config.num_kv_heads == config.num_heads and config.tied and config.qk_norm
    assert config.base_width == 1024 and config.rope_base == 500_000


def test_the_10B_row_is_the_one_that_its_printed_mlp_width_does_not_explain():
    config = ladder.paper(37)
    assert config.mlp_width == 12_672  # as printed, which gives the 9.98B below; the row needs 12 800
    assert f"{config.num_params / 1e9:.4g}" == "9.982"
    assert f"{dataclasses.replace(config, mlp_width=12_800).num_params / 1e9:.4g}" == "10.05"


@pytest.mark.parametrize(
    ("width", "layers"), [(16, 2), (32, 2), (48, 2), (64, 2), (80, 2), (96, 3), (128, 4), (256, 8)]
)
def test_laptop_rungs_have_about_one_layer_for_every_32_of_width_and_two_at_least(width, layers):
    config = ladder.laptop(width, 257)
    assert config.num_layers == layers and (width < 64 or abs(layers - width / 32) <= 0.5)
    assert config.num_heads * config.head_size == width and config.base_width == 64
    assert config.mlp_width % 8 == 0 and 0 <= config.mlp_width - 8 * width / 3 < 8


def test_any_field_of_the_config_can_be_changed():
    config = ladder.laptop(64, 257, num_kv_heads=2, tied=False, base_width=32)
    assert (config.num_kv_heads, config.tied, config.base_width) == (2, False, 32)
    assert ladder.paper(8, base_width=128).base_width == 128


def test_a_width_that_heads_cannot_divide_is_refused():
    with pytest.raises(InputError, match=r"^a width of 40 cannot be cut into heads of 16$"):
        ladder.laptop(40, 257)
