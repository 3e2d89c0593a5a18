"""The output layers of public models, as data: what tests and benchmarks of heads are measured at."""

import dataclasses

import jax

from jaxdistill.head import Head


@dataclasses.dataclass(frozen=True)
class Shape:
    """An output layer.

    Attributes:
      source: the model on huggingface.co; `width`, `rows` and `softcap` are `hidden_size`, `vocab_size` and
        `final_logit_softcapping` of its `config.json`.
      width: D.
      rows: of the output embedding, V.
      vocab_size: ids that the tokenizer can give, added tokens among them; `rows` where none is known to be padding.
      scale, softcap: as in `Head`.
      bias: whether the layer has one.
    """

    source: str
    width: int
    rows: int
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None
    bias: bool = False

    def random(self, seed: int, batch: int, length: int, dtype: str = "float32") -> Head:
        """A Head of this shape with normal entries, such that logits before the soft-cap have unit variance."""
        h_key, w_key, bias_key = jax.random.split(jax.random.key(seed), 3)
        h_BLD = jax.random.normal(h_key, (batch, length, self.width), dtype)
        w_VD = jax.random.normal(w_key, (self.rows, self.width), dtype) * (self.scale**-1 * self.width**-0.5)
        bias_V = jax.random.normal(bias_key, (self.rows,)) if self.bias else None
        w_VD = w_VD.astype(dtype)
        return Head(h_BLD, w_VD, bias_V, scale=self.scale, softcap=self.softcap, vocab_size=self.vocab_size)

    def abstract(self, batch: int, length: int, dtype: str = "float32") -> Head:
        """The same without its memory: arrays of `jax.ShapeDtypeStruct`, to compile for."""
        return jax.eval_shape(lambda: self.random(0, batch, length, dtype))


GPT2 = Shape("openai-community/gpt2", 768, 50_257, 50_257)
PYTHIA_160M = Shape("EleutherAI/pythia-160m", 768, 50_304, 50_277)
PYTHIA_1_4B = Shape("EleutherAI/pythia-1.4b", 2048, 50_304, 50_277)
PHI_2 = Shape("microsoft/phi-2", 2560, 51_200, 50_295, bias=True)
MISTRAL_7B = Shape("mistralai/Mistral-7B-v0.3", 4096, 32_768, 32_768)
SMOLLM2_135M = Shape("HuggingFaceTB/SmolLM2-135M", 576, 49_152, 49_152)
LLAMA_3_2_1B = Shape("meta-llama/Llama-3.2-1B", 2048, 128_256, 128_256)
LLAMA_3_1_8B = Shape("meta-llama/Llama-3.1-8B", 4096, 128_256, 128_256)
QWEN3_0_6B = Shape("Qwen/Qwen3-0.6B", 1024, 151_936, 151_669)
QWEN3_8B = Shape("Qwen/Qwen3-8B", 4096, 151_936, 151_669)
GEMMA_2_2B = Shape("google/gemma-2-2b", 2304, 256_000, 256_000, softcap=30.0)
GEMMA_2_9B = Shape("google/gemma-2-9b", 3584, 256_000, 256_000, softcap=30.0)
GEMMA_3_1B = Shape("google/gemma-3-1b-pt", 1152, 262_144, 262_144)
GEMMA_3_4B = Shape("google/gemma-3-4b-pt", 2560, 262_208, 262_145)
COMMAND_R = Shape("CohereLabs/c4ai-command-r-v01", 8192, 256_000, 256_000, scale=0.0625)  # its `logit_scale`

PUBLIC = (
    GPT2,
    PYTHIA_160M,
    PYTHIA_1_4B,
    PHI_2,
    MISTRAL_7B,
    SMOLLM2_135M,
    LLAMA_3_2_1B,
    LLAMA_3_1_8B,
    QWEN3_0_6B,
    QWEN3_8B,
    GEMMA_2_2B,
    GEMMA_2_9B,
    GEMMA_3_1B,
    GEMMA_3_4B,
    COMMAND_R,
)
