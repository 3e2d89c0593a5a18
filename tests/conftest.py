"""What all tests share: markers, a data cache of their own, and the smallest real experiments."""

import os
import pathlib
from pydoc_data.topics import topics

import jax
import pytest

from jaxdistill import data
from jaxdistill.experiment import Experiment, load_module

# Most of the suite's time goes into compiling, a third of that into LLVM's optimisations, which change no value that a
# test looks at; XLA's own stay. JAX reads this when it first meets a device, and so do processes that tests start.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if QUICK not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")
    own_csv = os.environ.get("JAXDISTILL_CHINCHILLA_CSV")
    parser.addoption("--chinchilla-csv", default=own_csv, help="your download, see tests/scaling/test_chinchilla.py")
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


# Folders whose files take longest, "tests" for its own: they begin, or one core ends alone.
LONGEST = ("parallel", "caching", "experiments", "tests")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes long; run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, worker_id):
    """A cache of prepared data and compiled programs, shared by the workers of one test session and what they start."""
    root = tmp_path_factory.getbasetemp()
    directory = (root if worker_id == "master" else root.parent) / "cache"
    programs = {"jax_compilation_cache_dir": str(directory / "xla"), "jax_persistent_cache_min_compile_time_secs": 0.2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDISTILL_CACHE", str(directory))
        for name, value in programs.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield directory


TINY = pathlib.Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="session")
def tiny() -> pathlib.Path:
    """The experiment file itself."""
    return TINY


@pytest.fixture
def supervised() -> Experiment:
    """A model that trains in a second, on a synthetic source."""
    return load_module(TINY).supervised()


@pytest.fixture
def distilled() -> Experiment:
    """Its student."""
    return load_module(TINY).config()


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> data.Files:
    """Sixty topics of Python's language reference."""
    root = tmp_path_factory.mktemp("text")
    for name, topic in sorted(topics.items())[:60]:
        (root / f"{name.replace('/', '-')}.txt").write_text(topic)
    return data.Files(str(root), validation=0.1)
