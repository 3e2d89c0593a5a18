"""Greedy generation against transformers: the same tokens, from the same weights, for the same prompts."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxdistill.generate import generate, make_generate  # noqa: E402
from jaxdistill.models.huggingface import reading  # noqa: E402
from jaxdistill.models.transformer import Transformer  # noqa: E402

V, STOP, MAX_TOKENS = 131, 2, 16
SIZES = {
    "vocab_size": V, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.1,
}  # fmt: skip
DRAW = np.random.default_rng(0)
PROMPTS = [DRAW.integers(3, V, size=size).astype(np.int32) for size in DRAW.integers(1, 25, size=20)]

CASES = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 6, "head_dim": 8}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 24}),
    "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 20,
                                "sliding_window": 6, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", {"num_key_value_heads": 1, "head_dim": 24, "sliding_window": 6, "layer_types":
                                    ["sliding_attention", "full_attention", "sliding_attention"]}),
    "pythia": ("GPTNeoXConfig", {}),
    "gpt2": ("GPT2Config", {"n_inner": 96}),
    "opt": ("OPTConfig", {"ffn_dim": 96, "init_std": 0.1}),
    "mixtral": ("MixtralConfig", {"num_key_value_heads": 2, "num_local_experts": 5, "num_experts_per_tok": 2}),
}  # fmt: skip


def make(name, directory):
    """A random model of transformers, saved, that now and then ends a text."""
    kind, changes = CASES[name]
    not_theirs = {
        "OPTConfig": ("intermediate_size", "initializer_range"),
        "GPT2Config": ("intermediate_size",),
    }.get(kind, ())
    sizes = {key: value for key, value in SIZES.items() if key not in not_theirs}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(sizes | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for own in model.parameters():
            own.add_(0.05 * torch.randn_like(own))
    model.save_pretrained(directory)
    return model


def theirs(model, prompt):
    """What transformers adds to one prompt, alone."""
    ids = torch.tensor(prompt[None], dtype=torch.long)
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=STOP,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].numpy()


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_of_twenty_prompts_are_those_of_transformers(name, tmp_path):
    reference = make(name, tmp_path / "source")
    expected = [theirs(reference, prompt) for prompt in PROMPTS]
    assert len(np.unique(np.concatenate(expected))) > 10  # no text that repeats itself, which any model might match
    source = reading.open_checkpoint(tmp_path / "source")
    made = make_generate(Transformer(source.config), None, (STOP,), MAX_TOKENS)
    texts = generate(functools.partial(jax.jit(made), reading.read_params(source)), PROMPTS, max_tokens=MAX_TOKENS)
    for text, ids in zip(texts, expected, strict=True):
        np.testing.assert_array_equal(text.ids, ids)
        assert text.stopped == (ids[-1] == STOP)
