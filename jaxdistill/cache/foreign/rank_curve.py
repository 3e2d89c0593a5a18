"""How DistillKit keeps the log-probabilities of a token: a curve over the rank (github.com/arcee-ai/DistillKit).

Of the k most probable ids, the most probable first, the first `exact_k` have their log-probabilities stored as they
are. The others follow from coefficients of a few functions of the rank, and what the curve misses is a few bits each.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import InputError

DTYPES = ("float16", "bfloat16", "float32", "float64")
SPECIAL = {"sqrt": np.sqrt, "exp": np.exp}  # terms of the rank that are no powers


@dataclasses.dataclass(frozen=True)
class Bin:
    """Residuals of `num_elements` ranks: a scale, and for each a signed number of `element_bits` that multiplies it."""

    scale_dtype: str
    element_bits: int
    num_elements: int

    def __post_init__(self):
        if not 1 <= self.element_bits <= 32:
            raise InputError(f"a residual bin of {self.element_bits} bits an element is not read: 1 to 32 are")

    def decode(self, scale: np.ndarray, code: np.ndarray) -> np.ndarray:
        """float64 [L, num_elements], of a scale [L, 1] and the bytes of the codes."""
        code = unpack_bits(code, self.element_bits, self.num_elements)
        return scale * (2.0 * code - 1 if self.element_bits == 1 else code - 2.0 ** (self.element_bits - 1))


@dataclasses.dataclass(frozen=True)
class Compression:
    """DistillKit's `logprob_compressor`, its fields by their own names.

    Attributes:
      d: the vocabulary's size, as far as ids need bits.
      k: entries a token.
      exact_k, exact_dtype: how many are stored as they are, and how.
      polynomial_terms, term_dtype: powers of the rank, "sqrt" or "exp", and the type of their coefficients. The rank
        counts from 0 after the exact entries.
      residual_bins: what is added to the ranks after the exact ones, bin after bin.
      delta_encoding: whether every number but the first is the difference from the one before.
      error_diffusion: how the residuals were rounded, which decoding does not ask.
      normalize_t: whether ranks run from 0 to 1.
    """

    d: int
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] | None = None
    term_dtype: str = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    columns = ("compressed_logprobs", "bytepacked_indices")

    def __post_init__(self):
        types = {self.exact_dtype, self.term_dtype, *(bin.scale_dtype for bin in self.residual_bins)}
        if unknown := types - set(DTYPES):
            raise InputError(f"DistillKit stores no numbers as {min(unknown)}: it knows {', '.join(DTYPES)}")
        for term in self.polynomial_terms or ():
            if not isinstance(term, int) and term not in SPECIAL:
                raise InputError(f"DistillKit has no term {term!r}: it knows powers as integers, {', '.join(SPECIAL)}")
        if not 0 <= self.exact_k <= self.k - sum(bin.num_elements for bin in self.residual_bins):
            raise InputError(f"exact_k is {self.exact_k}: it must leave room for the residual bins among k={self.k}")

    @property
    def vocab_size(self) -> int:
        return self.d

    def decode(self, values: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(id_LS, logp_LS) of uint8 [L, bytes] each; S = k. The curve is evaluated in float64."""
        id_LS = unpack_bits(ids, id_bits(self.d), self.k)
        exact, coefficients, *bins = self._parts(values)
        curve = numbers(coefficients, self.term_dtype) @ self.basis().T
        first = 0
        for bin, scale, code in zip(self.residual_bins, bins[::2], bins[1::2], strict=True):
            curve[:, first : first + bin.num_elements] += bin.decode(numbers(scale, bin.scale_dtype), code)
            first += bin.num_elements
        logp_LS = np.concatenate([numbers(exact, self.exact_dtype), curve], axis=-1)
        return id_LS, np.cumsum(logp_LS, axis=-1) if self.delta_encoding else logp_LS

    def _parts(self, values: np.ndarray) -> list[np.ndarray]:
        """The bytes of the exact values, of the coefficients, and of scale and codes of every bin."""
        sizes = [self.exact_k * width(self.exact_dtype), len(self.polynomial_terms or ()) * width(self.term_dtype)]
        for bin in self.residual_bins:
            sizes += [width(bin.scale_dtype), -(-bin.num_elements * bin.element_bits // 8)]
        if values.shape[-1] != sum(sizes):
            raise InputError(
                f"a token has {values.shape[-1]} bytes of values and not the {sum(sizes)} of its configuration"
            )
        return np.split(values, np.cumsum(sizes)[:-1], axis=-1)

    def basis(self) -> np.ndarray:
        """The terms at every rank, float64 [k - exact_k, terms]."""
        ranks = self.k - self.exact_k
        t = np.linspace(0, 1, ranks) if self.normalize_t else np.arange(ranks, dtype=np.float64)
        terms = self.polynomial_terms or ()
        basis = [SPECIAL[term](t) if isinstance(term, str) else t**term for term in terms]
        return np.array(basis).reshape(len(terms), ranks).T


@dataclasses.dataclass(frozen=True)
class Legacy:
    """DistillKit's older `legacy_logit_compression`, its fields by their own names.

    Attributes:
      k, exact_k, vocab_size: as above.
      polynomial_degree: powers 0 ... degree of the rank, which counts from 1 after the exact entries.
      invert_polynomial: whether they are negative.
      with_sqrt_term: whether the root of the rank follows.
      term_dtype: the type of the coefficients before they became a column of fp32.
    """

    k: int
    exact_k: int
    polynomial_degree: int
    vocab_size: int
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: str = "float32"

    columns = ("packed_indices", "exact_values", "coeffs")

    def decode(self, ids: np.ndarray, exact: np.ndarray, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(id_LS, logp_LS) of uint64 words with as many ids as fit, the first in the lowest bits, and fp32 numbers."""
        bits, basis = id_bits(self.vocab_size), self.basis()
        sizes = -(-self.k // (64 // bits)), self.exact_k, basis.shape[1]
        if (found := tuple(x.shape[-1] for x in (ids, exact, coefficients))) != sizes:
            raise InputError(
                f"a token has {found} words, values and coefficients and not the {sizes} of its configuration"
            )
        shift = np.arange(64 // bits, dtype=np.uint64) * np.uint64(bits)
        id_LS = (ids.astype(np.uint64)[..., None] >> shift & np.uint64(2**bits - 1)).reshape(len(ids), -1)[:, : self.k]
        return id_LS, np.concatenate([exact, coefficients.astype(np.float64) @ basis.T], axis=-1)

    def basis(self) -> np.ndarray:
        """The terms at every rank, float64 [k - exact_k, terms]; no terms where all ranks are exact."""
        t = np.arange(1, self.k - self.exact_k + 1, dtype=np.float64)
        powers = np.arange(self.polynomial_degree + 1) * (-1 if self.invert_polynomial else 1)
        terms = [t**power for power in powers] + [np.sqrt(t)] * self.with_sqrt_term
        return np.stack(terms, axis=-1) if len(t) else np.zeros((0, 0))


def id_bits(vocab_size: int) -> int:
    """Bits of an id: log2 of the vocabulary's size in fp32, rounded up, as DistillKit has it."""
    return int(np.ceil(np.log2(np.float32(vocab_size))))


def width(dtype: str) -> int:
    """Bytes of a number."""
    return jnp.dtype(dtype).itemsize


def numbers(stored: np.ndarray, dtype: str) -> np.ndarray:
    """uint8 [L, n width] as float64 [L, n]."""
    return np.ascontiguousarray(stored).view(jnp.dtype(dtype)).astype(np.float64)


def unpack_bits(stored: np.ndarray, bits: int, number: int) -> np.ndarray:
    """uint8 [L, bytes] as int64 [L, number]: one after another, of each the highest bit first."""
    if stored.shape[-1] != -(-number * bits // 8):
        raise InputError(f"a token has {stored.shape[-1]} bytes where {number} numbers of {bits} bits were written")
    found = np.unpackbits(stored, axis=-1, count=number * bits).reshape(len(stored), number, bits)
    return found @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
