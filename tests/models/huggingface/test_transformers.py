"""Against transformers itself: logits and states of tiny random models of every family, there and back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxdistill.models import moe  # noqa: E402
from jaxdistill.models.huggingface import reading, writing  # noqa: E402
from jaxdistill.models.transformer import Transformer  # noqa: E402

TOLERANCE = 2e-5
V, L = 131, 24  # an odd vocabulary, and positions past every window below

SIZES = {
    "vocab_size": V, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def case(config, **changes):
    return (config, changes)


CASES = {
    "llama 3.1": case("LlamaConfig", num_key_value_heads=2, rope_parameters=LLAMA3),
    "llama linear": case("LlamaConfig", num_key_value_heads=1, head_dim=24, tie_word_embeddings=True,
                         rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}),
    "llama biases": case("LlamaConfig", attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "mistral": case("MistralConfig", num_key_value_heads=2, sliding_window=6, head_dim=8),
    "mistral no window": case("MistralConfig", num_key_value_heads=4, sliding_window=None),
    "qwen2": case("Qwen2Config", num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2 windows": case("Qwen2Config", num_key_value_heads=1, use_sliding_window=True, sliding_window=6,
                          max_window_layers=1),
    "qwen3": case("Qwen3Config", num_key_value_heads=2, head_dim=24),
    "qwen3 biases": case("Qwen3Config", num_key_value_heads=4, head_dim=8, attention_bias=True,
                         tie_word_embeddings=True),
    "gemma2": case("Gemma2Config", num_key_value_heads=2, head_dim=24, query_pre_attn_scalar=20, sliding_window=6,
                   attn_logit_softcapping=1.0, final_logit_softcapping=2.0),
    "gemma3": case("Gemma3TextConfig", num_key_value_heads=1, head_dim=24, query_pre_attn_scalar=20, sliding_window=6,
                   layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gemma3 scaled": case("Gemma3TextConfig", num_key_value_heads=2, head_dim=16, sliding_window=6,
                          layer_types=["full_attention", "sliding_attention", "full_attention"],
                          rope_parameters={
                              "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                              "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                          }),
    "pythia": case("GPTNeoXConfig"),
    "neox sequential": case("GPTNeoXConfig", use_parallel_residual=False, tie_word_embeddings=True,
                            attention_bias=False, hidden_act="gelu_pytorch_tanh",
                            rope_parameters={"rope_type": "default", "rope_theta": 500.0,
                                             "partial_rotary_factor": 0.5}),
    "opt": case("OPTConfig", ffn_dim=96, init_std=0.1),
    "opt no biases": case("OPTConfig", ffn_dim=80, enable_bias=False, tie_word_embeddings=False, init_std=0.1),
    "gpt2": case("GPT2Config"),
    "gpt2 wide": case("GPT2Config", n_inner=80, tie_word_embeddings=False, activation_function="relu"),
    "mixtral": case("MixtralConfig", num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2),
    "mixtral window": case("MixtralConfig", num_key_value_heads=4, num_local_experts=3, num_experts_per_tok=1,
                           sliding_window=6),
    "qwen3_moe": case("Qwen3MoeConfig", num_key_value_heads=2, head_dim=24, num_experts=6, num_experts_per_tok=3,
                      moe_intermediate_size=40, norm_topk_prob=True),
    "qwen3_moe plain": case("Qwen3MoeConfig", num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
                            moe_intermediate_size=24, norm_topk_prob=False, tie_word_embeddings=True),
}  # fmt: skip


def make(name, directory):
    """A random model of transformers in which no bias is zero and no gain one, saved."""
    kind, changes = CASES[name]
    dropped = {"OPTConfig": ("intermediate_size", "initializer_range")}.get(kind, ())
    sizes = {key: value for key, value in SIZES.items() if key not in dropped}
    if kind == "GPT2Config":
        sizes.pop("intermediate_size")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, kind)(**(sizes | changes)), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for own in model.parameters():
            own.add_(0.05 * torch.randn_like(own))
    model.save_pretrained(directory)
    return model


def tokens(rows=2):
    return np.random.default_rng(0).integers(V, size=(rows, L))


def forward(model, tokens_BL):
    with torch.no_grad():
        return model(torch.tensor(tokens_BL), output_hidden_states=True)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_states_are_those_of_transformers_there_and_back(name, tmp_path):
    theirs = forward(make(name, tmp_path / "source"), tokens())
    source = reading.open_checkpoint(tmp_path / "source")
    params, model = reading.read_params(source), Transformer(source.config)
    layers = tuple(range(source.config.num_layers - 1))  # theirs shows the last layer behind the last norm

    @jax.jit
    def run(params):
        h_BLD, kept = model.hidden(params, tokens(), keep=layers)
        return model.head(params, h_BLD).logits(), kept, h_BLD

    z_BLV, kept, h_BLD = run(params)
    reference = theirs.logits.numpy()
    assert np.abs(reference).max() > 0.5  # large enough for the tolerance to mean something
    np.testing.assert_allclose(z_BLV[..., :V], reference, rtol=0, atol=TOLERANCE)
    for n in layers:
        np.testing.assert_allclose(kept[n], theirs.hidden_states[n + 1].numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(h_BLD, theirs.hidden_states[-1].numpy(), rtol=0, atol=TOLERANCE)
    (tmp_path / "out").mkdir()
    writing.write_checkpoint(
        tmp_path / "out", source.config, params, positions=source.positions, prefer=source.family.model_type
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert type(again).__name__ == source.family.architecture
    np.testing.assert_array_equal(forward(again, tokens()).logits.numpy(), reference)


def test_the_balance_of_experts_is_that_of_transformers():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits_BLE = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
    expected = load_balancing_loss_func((torch.tensor(logits_BLE.reshape(-1, 5)),), 5, 2)
    got = moe.load_balance(jnp.asarray(logits_BLE), jnp.ones((2, 7)), 2)
    np.testing.assert_allclose(got, expected.item(), rtol=2 * math.sqrt(14) * 2.0**-24 * 4)
