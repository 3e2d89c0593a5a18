"""DistillKit's captured log-probabilities: Parquet files with one row a sequence (github.com/arcee-ai/DistillKit).

A token has two lists of bytes, its log-probabilities and its ids; in the older format three of numbers. What they mean
stands in `compression_config.yaml`, which DistillKit writes beside the files; see `rank_curve`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.cache.foreign.rank_curve import Bin, Compression, Legacy
from jaxdistill.cache.foreign.sequence import Sequence
from jaxdistill.errors import InputError

CONFIG = "compression_config.yaml"
LARGEST_MASS = 2.0  # of the kept ids, on average: a curve that misses is off by some per cent, logits by powers of e


def read(directory: str | Path, compression: Compression | Legacy | None = None) -> Iterator[Sequence]:
    """The sequences of all Parquet files of a directory, in the order of the files' names.

    Args:
      directory: of the files.
      compression: how they were made; None for what its `compression_config.yaml` says.

    Raises:
      InputError: pyarrow is missing, or a file, a column or the configuration is not what DistillKit writes.
    """
    directory = Path(directory)
    compression = compression or load_config(directory / CONFIG)
    if not (files := sorted(directory.glob("*.parquet"))):
        raise InputError(f"{directory} holds no .parquet files: give the directory that DistillKit wrote")
    for file in files:
        for row, columns in enumerate(_rows(file, compression.columns)):
            try:
                yield _sequence(columns, compression)
            except InputError as error:
                raise InputError(f"row {row} of {file}: {error}") from None


def load_config(file: Path) -> Compression | Legacy:
    """A configuration as DistillKit writes it; InputError where it is missing or says what is not known here."""
    import yaml

    try:
        fields = yaml.safe_load(file.read_bytes())
        kind = Legacy if "polynomial_degree" in fields else Compression
        for name in ("polynomial_terms", "residual_bins"):
            if fields.get(name) is not None:
                fields[name] = tuple(Bin(**x) if isinstance(x, dict) else x for x in fields[name])
        return kind(**fields)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): give the compression yourself") from error
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no compression of DistillKit: {str(error).splitlines()[0]}") from error


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
    """The columns of each row as arrays [L, ...], with `input_ids` beside them."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(f"reading {file} needs pyarrow: pip install 'jaxdistill[parquet]'") from error
    try:
        with pq.ParquetFile(file) as table:
            if missing := {"input_ids", *columns} - set(table.schema_arrow.names):
                raise InputError(f"{file} has no column {min(missing)!r}: DistillKit writes input_ids, {columns}")
            for batch in table.iter_batches(batch_size=8, columns=["input_ids", *columns]):
                for row in range(len(batch)):
                    yield {name: _array(batch.column(name)[row].values) for name in ("input_ids", *columns)}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _array(values: Any) -> np.ndarray:
    """A list as [L] and a list of lists as [L, width]; none at all, or lists of unequal lengths, as [L, 0]."""
    if values is None:
        return np.zeros((0, 0), np.uint8)
    if not hasattr(values, "value_lengths"):
        return values.to_numpy(zero_copy_only=False)
    widths, flat = set(values.value_lengths().to_pylist()), values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), *widths) if len(widths) == 1 else np.zeros((len(values), 0), flat.dtype)


def _sequence(columns: Mapping[str, np.ndarray], compression: Compression | Legacy) -> Sequence:
    tokens, *stored = columns.values()
    if len(lengths := {len(x) for x in stored}) > 1:
        raise InputError(f"its columns are about {sorted(lengths)} tokens: they must be about the same")
    id_LS, logp_LS = compression.decode(*stored)
    if not len(id_LS) <= len(tokens) <= len(id_LS) + 1:
        raise InputError(f"it holds {len(id_LS)} distributions for {len(tokens)} tokens")
    if id_LS.max(initial=0) >= compression.vocab_size:
        raise InputError(f"it holds the id {id_LS.max()} of a vocabulary of {compression.vocab_size}")
    mass = np.exp(logp_LS).sum(axis=-1).mean() if len(logp_LS) else 0.0
    if not mass <= LARGEST_MASS:
        raise InputError(f"its values are no log-probabilities: they give the kept tokens a mass of {mass:.3g}")
    return Sequence(tokens.astype(np.int32), id_LS.astype(np.int32), logp_LS.astype(np.float32))
