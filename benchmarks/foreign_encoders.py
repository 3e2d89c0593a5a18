"""What other systems' caches take for the same entries, and what is read back: encoders from their descriptions.

Each gives (bytes a token, log-probabilities as they would be read). Containers are left out: Parquet, tar, the archive
around a tensor. Curves are fitted in float64, which is better than their own.
"""

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jaxdistill.cache.foreign.rank_curve import Compression, id_bits

ITERATION = 2048  # tokens that Megatron-LM compresses together: a global batch of one rank, made small


def distillkit(compression: Compression, id_TS: np.ndarray, logp_TS: np.ndarray) -> tuple[float, np.ndarray]:
    """A curve over the rank and ids in as many bits as they need (github.com/arcee-ai/DistillKit)."""
    k, exact = compression.k, compression.exact_k
    id_TS, logp_TS = id_TS[:, :k], np.float64(logp_TS[:, :k])
    values = np.diff(logp_TS, prepend=0) if compression.delta_encoding else logp_TS
    head = values[:, :exact].astype(jnp.dtype(compression.exact_dtype))
    basis = compression.basis()
    scale = np.abs(basis).max(axis=0)
    coefficients = values[:, exact:] @ np.linalg.pinv(basis / scale).T / scale
    curve = coefficients.astype(jnp.dtype(compression.term_dtype))
    values_bytes = np.concatenate([x.view(np.uint8).reshape(len(x), -1) for x in (head, curve)], axis=-1)
    width = id_bits(compression.d)
    bits = (id_TS[..., None] >> np.arange(width - 1, -1, -1) & 1).astype(np.uint8)
    id_bytes = np.packbits(bits.reshape(len(bits), -1), axis=-1)
    back, read = compression.decode(values_bytes, id_bytes)
    np.testing.assert_array_equal(back, id_TS)
    return values_bytes.shape[1] + id_bytes.shape[1], read


def megatron(id_TS: np.ndarray, logp_TS: np.ndarray) -> tuple[float, np.ndarray]:
    """16-bit log-probabilities, 16 bits and a byte for the 17th of the ids, zstandard (Megatron-LM, pull 5019)."""
    stored, size = logp_TS.astype(np.float16), 0
    for start in range(0, len(id_TS), ITERATION):
        part = slice(start, start + ITERATION)
        arrays = stored[part], (id_TS[part] & 0xFFFF).astype(np.uint16), (id_TS[part] >> 16).astype(bool)
        size += len(pa.Codec("zstd", 3).compress(b"".join(x.tobytes() for x in arrays), asbytes=True))
    return size / len(id_TS), stored.astype(np.float64)
