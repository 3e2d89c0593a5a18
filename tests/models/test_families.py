"""The named sizes have as many parameters as their checkpoints."""

import inspect

import pytest

from jaxdistill.models.families import gemma, gpt, llama

PUBLISHED = {
    llama.llama2_7b: 6_738_415_616,
    llama.llama3_8b: 8_030_261_248,
    llama.llama3_1_8b: 8_030_261_248,
    llama.llama3_1_70b: 70_553_706_496,
    llama.llama3_2_1b: 1_235_814_400,
    llama.llama3_2_3b: 3_212_749_824,
    llama.mistral_7b: 7_241_732_096,
    llama.mixtral_8x7b: 46_702_792_704,
    llama.qwen2_5_0_5b: 494_032_768,
    llama.qwen2_5_1_5b: 1_543_714_304,
    llama.qwen2_5_7b: 7_615_616_512,
    llama.qwen3_0_6b: 596_049_920,
    llama.qwen3_1_7b: 1_720_574_976,
    llama.qwen3_4b: 4_022_468_096,
    llama.qwen3_8b: 8_190_735_360,
    llama.qwen3_30b_a3b: 30_532_122_624,
    gemma.gemma2_2b: 2_614_341_888,
    gemma.gemma2_9b: 9_241_705_984,
    gemma.gemma2_27b: 27_227_128_320,
    gemma.gemma3_1b: 999_885_952,
    gpt.pythia_70m: 70_426_624,
    gpt.pythia_160m: 162_322_944,
    gpt.pythia_410m: 405_334_016,
    gpt.pythia_1b: 1_011_781_632,
    gpt.pythia_1_4b: 1_414_647_808,
    gpt.gpt2: 124_439_808,
    gpt.gpt2_medium: 354_823_168,
    gpt.gpt2_large: 774_030_080,
    gpt.gpt2_xl: 1_557_611_200,
    gpt.opt_125m: 125_239_296,
    gpt.opt_1_3b: 1_315_758_080,
    gpt.opt_6_7b: 6_658_473_984,
}


@pytest.mark.parametrize("name", PUBLISHED, ids=lambda name: name.__name__)
def test_a_named_size_has_the_parameters_of_its_public_checkpoint(name):
    assert name().num_params_total == PUBLISHED[name]


def test_every_named_size_is_among_them():
    def is_size(function):
        return inspect.isfunction(function) and any(c.isdigit() for c in function.__name__.partition("_")[2])

    named = {f for module in (llama, gemma, gpt) for _, f in inspect.getmembers(module, is_size)}
    assert named == {f for f in PUBLISHED if is_size(f)}
