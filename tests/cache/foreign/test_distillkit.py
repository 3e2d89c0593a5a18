"""DistillKit's Parquet, written here from its description by an encoder of this file's own, is read as it was meant."""

import math

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jaxdistill.cache.foreign import distillkit
from jaxdistill.cache.foreign.rank_curve import Compression, Legacy
from jaxdistill.errors import InputError

L = 6
NONE = {"residual_bins": [], "polynomial_terms": None, "delta_encoding": False}
EIGHT = {"scale_dtype": "float16", "element_bits": 8, "num_elements": 24}
TWO = {"scale_dtype": "float32", "element_bits": 2, "num_elements": 40}
ONE = {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 24}

# The recommended, the budget and the Qwen3 configuration of the README, then every other field it has.
CONFIGS = {
    "recommended": dict(NONE, k=128, exact_k=16, exact_dtype="bfloat16", polynomial_terms=[0, 1, 2, 3, 4, "sqrt"]),
    "budget": dict(NONE, k=50, exact_k=1, exact_dtype="bfloat16", polynomial_terms=[0, 1, "sqrt"]),
    "qwen": dict(NONE, k=128, exact_k=32, polynomial_terms=[0, 1, 2], delta_encoding=True),
    "ranks from 0 to 1": dict(NONE, k=64, exact_k=8, polynomial_terms=[0, 1, 2, "exp"], normalize_t=True),
    "half a coefficient": dict(NONE, k=40, exact_k=8, polynomial_terms=[0, "sqrt"], term_dtype="bfloat16"),
    "exact": dict(NONE, k=32, exact_k=32, exact_dtype="float16"),
    "no exact one": dict(NONE, k=50, exact_k=0, polynomial_terms=[0, 1, "sqrt"]),
    "bins": dict(NONE, k=88, exact_k=16, polynomial_terms=[0, 1, 2, "sqrt"], residual_bins=[EIGHT, TWO]),
    "bins alone": dict(NONE, k=48, exact_k=24, residual_bins=[EIGHT]),
    "a bit": dict(NONE, k=60, exact_k=20, polynomial_terms=[0, 1, "sqrt"], residual_bins=[ONE], error_diffusion=True),
}


def teacher(vocab_size: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, log-probabilities) [L, k], falling: Zipf's law, each token with noise of its own."""
    rng = np.random.default_rng(k)
    z = -1.1 * np.log(np.arange(1, 2001)) + 0.3 * rng.normal(size=(L, 2000))
    logp = np.sort(z - np.log(np.exp(z).sum(-1, keepdims=True)))[:, ::-1]
    ids = np.stack([rng.choice(vocab_size, size=k, replace=False) for _ in range(L)])
    ids[0, 0] = vocab_size - 1
    return ids, logp[:, :k]


def bits(values, width: int) -> bytes:
    """The numbers in `width` bits each, one after another and filled up to whole bytes: by way of a string."""
    text = "".join(format(int(value), f"0{width}b") for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def stored(values, dtype: str) -> tuple[bytes, np.ndarray]:
    rounded = np.asarray(values).astype(jnp.dtype(dtype))
    return rounded.tobytes(), rounded.astype(np.float64)


def encode(logp_K: np.ndarray, config: dict) -> tuple[bytes, np.ndarray]:
    """(bytes, what they stand for) of one token."""
    exact, terms = config["exact_k"], config["polynomial_terms"]
    values = np.diff(logp_K, prepend=0) if config["delta_encoding"] else logp_K
    data, decoded = stored(values[:exact], config.get("exact_dtype", "float32"))
    rest, curve = values[exact:], np.zeros(len(values) - exact)
    if terms:
        t = np.arange(len(rest)) / (len(rest) - 1 if config.get("normalize_t") else 1)
        basis = [t**x if isinstance(x, int) else {"sqrt": np.sqrt, "exp": np.exp}[x](t) for x in terms]
        scale = [np.abs(x).max() for x in basis]
        fitted = np.linalg.lstsq(np.stack([x / s for x, s in zip(basis, scale, strict=True)], 1), rest)[0] / scale
        more, coefficients = stored(fitted, config.get("term_dtype", "float32"))
        data, curve = data + more, sum(c * x for c, x in zip(coefficients, basis, strict=True))
    first = 0
    for each in config["residual_bins"]:
        width, place = each["element_bits"], slice(first, first + each["num_elements"])
        left = (rest - curve)[place]
        more, scale = stored([np.abs(left).max() / 2 ** (width - 1)], each["scale_dtype"])
        code = left > 0 if width == 1 else np.clip(np.round(left / scale), -(2 ** (width - 1)), 2 ** (width - 1) - 1)
        curve[place] += scale * (2 * code - 1 if width == 1 else code)
        data += more + bits(code if width == 1 else code + 2 ** (width - 1), width)
        first = place.stop
    decoded = np.concatenate([decoded, curve])
    return data, np.cumsum(decoded) if config["delta_encoding"] else decoded


def write(directory, config: dict, columns: dict[str, list], name: str = "data_0.parquet") -> None:
    types = {"input_ids": pa.list_(pa.uint64()), "packed_indices": pa.list_(pa.list_(pa.uint64()))}
    types |= dict.fromkeys(("exact_values", "coeffs"), pa.list_(pa.list_(pa.float32())))
    schema = pa.schema([(column, types.get(column, pa.list_(pa.list_(pa.uint8())))) for column in columns])
    pq.write_table(pa.table(columns, schema=schema), directory / name)
    (directory / distillkit.CONFIG).write_text(yaml.safe_dump(config))


def row(config: dict, vocab_size: int, extra: int = 1) -> tuple[dict[str, list], np.ndarray, np.ndarray]:
    """(the columns of one row, the ids, what the values stand for)."""
    ids, logp = teacher(vocab_size, config["k"])
    encoded = [encode(logp_K, config) for logp_K in logp]
    width = math.ceil(math.log2(vocab_size))
    columns = {
        "input_ids": [list(range(L + extra))],
        "compressed_logprobs": [[list(data) for data, _ in encoded]],
        "bytepacked_indices": [[list(bits(id_K, width)) for id_K in ids]],
    }
    return columns, ids, np.stack([decoded for _, decoded in encoded])


@pytest.mark.parametrize("vocab_size", [50_257, 131_072, 151_936])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_is_read_as_its_bytes_mean_it(tmp_path, name, vocab_size):
    config = dict(CONFIGS[name], d=vocab_size)
    columns, ids, decoded = row(config, vocab_size)
    write(tmp_path, config, columns)
    (sequence,) = distillkit.read(tmp_path)
    np.testing.assert_array_equal(sequence.tokens, np.arange(L + 1))
    np.testing.assert_array_equal(sequence.id_LS, ids)
    assert sequence.id_LS.dtype == sequence.tokens.dtype == np.int32 and sequence.logp_LS.dtype == np.float32
    # A curve is a sum of terms that nearly cancel, here in another order of float64, and then rounded to float32.
    np.testing.assert_allclose(sequence.logp_LS, decoded, rtol=2.0**-23, atol=1e-6)


def test_what_is_read_is_the_teacher_as_far_as_the_bits_went():
    for name, error in {"bins": 0.02, "exact": 2e-3, "ranks from 0 to 1": 0.2, "qwen": 0.2}.items():
        config = dict(CONFIGS[name], d=50_257)
        columns, _, _ = row(config, 50_257)
        data = [np.array(columns[name][0], np.uint8) for name in Compression.columns]
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        fields["residual_bins"] = tuple(distillkit.Bin(**each) for each in config["residual_bins"])
        _, logp_LS = Compression(**fields).decode(*data)
        assert np.abs(logp_LS - teacher(50_257, config["k"])[1]).mean() < error


@pytest.mark.parametrize("vocab_size", [32_000, 128_256])
@pytest.mark.parametrize(("invert", "root"), [(True, False), (False, True)])
def test_the_older_format_is_read_as_its_words_mean_it(tmp_path, vocab_size, invert, root):
    k, exact, degree = 50, 20, 3
    ids, logp = teacher(vocab_size, k)
    width = math.ceil(math.log2(vocab_size))
    words = [
        [sum(int(x) << width * i for i, x in enumerate(id_K[s : s + 64 // width])) for s in range(0, k, 64 // width)]
        for id_K in ids
    ]
    t = np.arange(1, k - exact + 1)
    basis = np.stack([t ** (-float(i) if invert else float(i)) for i in range(degree + 1)] + [np.sqrt(t)] * root, 1)
    coefficients = np.linalg.lstsq(basis, logp[:, exact:].T)[0].T.astype(np.float32)
    config = {"k": k, "exact_k": exact, "polynomial_degree": degree, "vocab_size": vocab_size}
    config |= {"invert_polynomial": invert, "with_sqrt_term": root, "term_dtype": "float32"}
    head = np.float16(logp[:, :exact])
    columns = {"input_ids": [list(range(L))], "packed_indices": [words]}
    columns |= {"exact_values": [head.astype(np.float32).tolist()], "coeffs": [coefficients.tolist()]}
    write(tmp_path, config, columns)
    (sequence,) = distillkit.read(tmp_path)
    np.testing.assert_array_equal(sequence.id_LS, ids)
    want = np.concatenate([np.float64(head), np.float64(coefficients) @ basis.T], axis=-1)
    np.testing.assert_allclose(sequence.logp_LS, want, rtol=2.0**-23, atol=1e-6)


def test_words_that_do_not_fit_the_older_format_are_refused():
    legacy = Legacy(k=5, exact_k=2, polynomial_degree=1, vocab_size=32_000)  # four ids of 15 bits a word
    with pytest.raises(InputError, match=r"has \(1, 2, 2\) words, values and coefficients and not the \(2, 2, 2\)"):
        legacy.decode(np.zeros((L, 1), np.uint64), np.zeros((L, 2)), np.zeros((L, 2)))
    id_LS, logp_LS = Legacy(k=2, exact_k=2, polynomial_degree=1, vocab_size=32_000).decode(
        np.full((L, 1), 7 + (9 << 15), np.uint64), np.full((L, 2), -1.5), np.zeros((L, 0))
    )
    assert np.all(id_LS == [7, 9]) and np.all(logp_LS == -1.5)


def test_rows_come_file_by_file_and_a_configuration_given_is_taken(tmp_path):
    config = dict(CONFIGS["exact"], d=50_257)
    columns, ids, _ = row(config, 50_257, extra=0)
    twice = {name: 2 * column for name, column in columns.items()}
    write(tmp_path, config, twice, "a.parquet")
    write(tmp_path, config, {**columns, "input_ids": [[7] * L]}, "b.parquet")
    (tmp_path / distillkit.CONFIG).unlink()
    compression = Compression(d=50_257, k=32, exact_k=32, exact_dtype="float16", delta_encoding=False)
    found = list(distillkit.read(tmp_path, compression))
    assert [sequence.tokens[0] for sequence in found] == [0, 0, 7]
    np.testing.assert_array_equal(found[2].id_LS, ids)


def spoilt(config, columns, what):
    """The same with one thing wrong."""
    config, columns = dict(config), dict(columns)
    match what:
        case "values":
            columns["compressed_logprobs"] = [[x[:-1] for x in columns["compressed_logprobs"][0]]]
        case "ragged":
            first, *others = columns["bytepacked_indices"][0]
            columns["bytepacked_indices"] = [[first[:-1], *others]]
        case "none":
            columns["bytepacked_indices"] = [None]
        case "length":
            columns["bytepacked_indices"] = [columns["bytepacked_indices"][0][:-1]]
        case "ids":
            config["d"] = 40_000
        case "tokens":
            columns["input_ids"] = [[1, 2]]
        case "column":
            del columns["bytepacked_indices"]
        case "field":
            config["compression_level"] = 3
        case "dtype":
            config["exact_dtype"] = "float8"
        case "term":
            config["polynomial_terms"] = [0, "log"]
        case "bin":
            config["residual_bins"] = [dict(EIGHT, element_bits=40)]
        case "logits":
            columns["compressed_logprobs"] = [[list(np.full(32, 4, np.float16).tobytes())] * L]
        case "nan":
            columns["compressed_logprobs"] = [[list(np.full(32, np.nan, np.float16).tobytes())] * L]
    return config, columns


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("values", r"row 0 of .*data_0\.parquet: a token has 63 bytes of values and not the 64 of its configuration"),
        ("ragged", r"a token has 0 bytes where 32 numbers of 16 bits were written"),
        ("none", r"its columns are about \[0, 6\] tokens"),
        ("length", r"its columns are about \[5, 6\] tokens"),
        ("ids", r"it holds the id 50256 of a vocabulary of 40000"),
        ("tokens", r"it holds 6 distributions for 2 tokens"),
        ("column", r"has no column 'bytepacked_indices'"),
        ("field", r"is no compression of DistillKit: .*compression_level"),
        ("dtype", r"DistillKit stores no numbers as float8"),
        ("term", r"DistillKit has no term 'log'"),
        ("bin", r"a residual bin of 40 bits an element is not read: 1 to 32 are"),
        ("logits", r"no log-probabilities: they give the kept tokens a mass of 1\.75e\+03"),
        ("nan", r"no log-probabilities: they give the kept tokens a mass of nan"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_sentence(tmp_path, what, sentence):
    config = dict(CONFIGS["exact"], d=50_257)
    config, columns = spoilt(config, row(config, 50_257)[0], what)
    write(tmp_path, config, columns)
    with pytest.raises(InputError, match=sentence):
        list(distillkit.read(tmp_path))


def test_a_directory_that_lacks_something_is_refused(tmp_path):
    with pytest.raises(InputError, match="give the compression yourself"):
        list(distillkit.read(tmp_path))
    with pytest.raises(InputError, match=r"holds no \.parquet files"):
        list(distillkit.read(tmp_path, Legacy(k=4, exact_k=4, polynomial_degree=0, vocab_size=9)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"a\.parquet cannot be read"):
        list(distillkit.read(tmp_path, Legacy(k=4, exact_k=4, polynomial_degree=0, vocab_size=9)))
