"""All families that are read and written."""

from jaxdistill.models.huggingface.family import Family
from jaxdistill.models.huggingface.gemma import GEMMA2, GEMMA3
from jaxdistill.models.huggingface.gpt import GPT2, NEOX, OPT
from jaxdistill.models.huggingface.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE

FAMILIES: tuple[Family, ...] = (
    LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, NEOX, OPT, GPT2, MIXTRAL, QWEN3_MOE,
)  # fmt: skip
