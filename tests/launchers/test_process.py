import sys
import time
from pathlib import Path

import pytest

from jaxdistill.launchers import Local, process


def test_a_run_that_cannot_start_gives_its_status_and_its_words(tmp_path):
    """On this machine, and in the worker of a cluster: the same process, the same log."""
    with Local(processes=1) as launcher:
        launcher.start(tmp_path)
        assert not launcher.free()
        while not (ended := launcher.finished()):
            time.sleep(0.05)
        assert launcher.free()
    assert ended == [(tmp_path, 2)]
    assert "is not a run directory" in process.last_line(tmp_path)
    (tmp_path / process.LOG).unlink()
    assert process.last_line(tmp_path) == "it printed nothing"
    assert process.run(tmp_path, {"JAX_PLATFORMS": "cpu"}, Path("/nowhere")) == 2
    assert "is not a run directory" in process.last_line(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of a process from /proc")
@pytest.mark.parametrize("own", [None, "glibc.malloc.check=0"])
def test_a_run_has_large_pages_unless_the_variable_is_somebody_elses(tmp_path, monkeypatch, own):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    started = process.begin(tmp_path, {} if own is None else {"GLIBC_TUNABLES": own})
    variables = Path(f"/proc/{started.pid}/environ").read_bytes().decode().split("\0")
    process.end([started])
    assert f"GLIBC_TUNABLES={own or 'glibc.malloc.hugetlb=1'}" in variables
