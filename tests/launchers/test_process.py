import time
from pathlib import Path

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
