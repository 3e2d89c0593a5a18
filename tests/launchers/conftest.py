"""Sweeps as processes that are stopped, killed and started again."""

import signal
import subprocess
import sys
import time

import pytest

from jaxdistill import metrics


class Sweep:
    """The command of one sweep, started as often as it takes."""

    def __init__(self, file, out, overrides, options):
        self.out = out
        self._command = [sys.executable, "-m", "jaxdistill", "sweep", file, *overrides, "--out", out, *options]

    def start(self):
        """Starts it, and waits until its runs have come further than before."""
        reached = self._reached()
        self.process = subprocess.Popen(list(map(str, self._command)), stderr=subprocess.PIPE, text=True)
        while self._reached() <= reached:
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.02)

    def hear(self, words):
        """Waits until it has said so."""
        while words not in (line := self.process.stderr.readline()):
            assert line, words

    def _reached(self):
        rows = [metrics.read(path) for path in self.out.glob("*/metrics.jsonl")]
        return sum(some[-1]["step"] for some in rows if some)

    def end(self, number=None):
        """Waits for its end, which a signal may have brought about; gives what it said."""
        if number is not None:
            self.process.send_signal(number)
        said = self.process.communicate(timeout=1200)[1]
        assert self.process.returncode == {None: 0, signal.SIGTERM: 128 + signal.SIGINT}.get(number, -(number or 0)), (
            said
        )
        return said

    def log(self, run):
        return (self.out / run / "log.txt").read_text()


@pytest.fixture
def sweeping(tiny, tmp_path):
    """Makes a sweep of the points that an expression in tiny.py gives, in tmp_path / out."""
    made = []

    def make(points, overrides, options):
        file = tmp_path / "experiment.py"
        file.write_text(tiny.read_text() + f"\n\ndef sweep():\n    return {points}\n")
        made.append(Sweep(file, tmp_path / "out", overrides, options))
        return made[-1]

    yield make
    for sweep in made:
        sweep.process.kill()
        sweep.process.communicate()
