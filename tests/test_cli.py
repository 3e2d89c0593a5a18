"""Bad input gets one clear sentence and a non-zero exit. Each of these is something a user will do."""

import os
import resource
import subprocess
import sys

import pytest

from jaxdistill import config
from jaxdistill.cli import main, parser


def jaxdistill(capsys, *arguments):
    """Exit status, standard output and standard error of a command, run in this process."""
    try:
        status = main([*map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def assert_one_sentence(status, error, *words):
    assert status == 2
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("jaxdistill: ")
    for word in words:
        assert word in lines[0]


def verbs():
    (actions,) = (action for action in parser()._actions if hasattr(action, "choices") and action.choices)
    return list(actions.choices)


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help_with_an_example(capsys, verb):
    status, out, _ = jaxdistill(capsys, verb, "--help")
    assert status == 0
    assert f"example: jaxdistill {verb} " in out


@pytest.mark.parametrize("verb", ["build", "verify", "info", "slice", "import"])
def test_every_verb_of_a_cache_has_help_with_an_example(capsys, verb):
    status, out, _ = jaxdistill(capsys, "cache", verb, "--help")
    assert status == 0
    assert f"example: jaxdistill cache {verb} " in out


def test_what_is_no_cache_and_what_has_none_to_build(capsys, tmp_path, tiny):
    for verb in ("info", "verify"):
        status, _, error = jaxdistill(capsys, "cache", verb, tmp_path)
        assert_one_sentence(status, error, "is not the directory of a finished run")
    status, _, error = jaxdistill(capsys, "cache", "build", tiny)
    assert_one_sentence(status, error, "has no cache to build", "Cached(...)")
    status, _, error = jaxdistill(capsys, "cache", "build", tiny, "--part", "4/4")
    assert status == 2
    status, _, error = jaxdistill(capsys, "report", tiny)
    assert_one_sentence(status, error, "has no report()")
    status, _, error = jaxdistill(capsys, "report", "experiments/sparse_kd.py", tmp_path / "none")
    assert_one_sentence(status, error, "there is no sweep in", "jaxdistill sweep")


def test_a_missing_experiment_file(capsys, tmp_path):
    status, _, error = jaxdistill(capsys, "run", tmp_path / "none.py")
    assert_one_sentence(status, error, "there is no experiment file", "none.py")


def test_an_experiment_file_that_cannot_be_loaded(capsys, tmp_path):
    (tmp_path / "bad.py").write_text("import nonsense_that_is_not_there\n")
    status, _, error = jaxdistill(capsys, "run", tmp_path / "bad.py")
    assert_one_sentence(status, error, "cannot be loaded", "nonsense_that_is_not_there")


def test_an_experiment_file_without_a_function(capsys, tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    status, _, error = jaxdistill(capsys, "sweep", tmp_path / "empty.py")
    assert_one_sentence(status, error, "has no sweep()")


def test_an_unknown_override(capsys, tiny):
    status, _, error = jaxdistill(capsys, "run", tiny, "modle.width=64")
    assert_one_sentence(status, error, "'modle'", "did you mean 'model'")


def test_an_unknown_preset(capsys, tiny):
    status, _, error = jaxdistill(capsys, "run", "experiments/scaling_law.py", "--preset", "laptpo")
    assert_one_sentence(status, error, "laptpo", "laptop, markov, gpu, paper")
    status, _, error = jaxdistill(capsys, "run", tiny, "--preset", "x")
    assert_one_sentence(status, error, "takes no 'preset'")


def test_overrides_of_a_run_directory(capsys, tmp_path):
    status, _, error = jaxdistill(capsys, "run", tmp_path, "seed=1")
    assert_one_sentence(status, error, "configuration is fixed")


def test_missing_and_empty_data(capsys, tmp_path, tiny):
    file = tmp_path / "mine.py"
    file.write_text(
        tiny.read_text()
        + """
def config():
    tokens = dataclasses.replace(supervised().data, source=data.Files(PATH))
    return dataclasses.replace(supervised(), data=tokens)
"""
    )

    def with_path(path):
        file.write_text(f"PATH = {str(path)!r}\n" + file.read_text().partition("\n")[2])
        return jaxdistill(capsys, "run", file, "--quiet", "--out", tmp_path / "out" / path.name)

    file.write_text("PATH = None\n" + file.read_text())
    status, _, error = with_path(tmp_path / "nowhere.txt")
    assert_one_sentence(status, error, "nowhere.txt")
    (tmp_path / "empty.txt").write_text("")
    status, _, error = with_path(tmp_path / "empty.txt")
    assert_one_sentence(status, error, "empty.txt")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa" * 100)
    status, _, error = with_path(tmp_path / "bad.txt")
    assert_one_sentence(status, error, "bad.txt")
    (tmp_path / "short.txt").write_text("a few words")
    status, _, error = with_path(tmp_path / "short.txt")
    assert_one_sentence(status, error)


def test_shapes_that_no_mesh_can_share(capsys, tmp_path, tiny):
    status, _, error = jaxdistill(
        capsys, "run", tiny, "mesh.tensor=3", "mesh.fsdp=1", "--quiet", "--out", tmp_path / "x"
    )
    assert_one_sentence(status, error, "does not fit 1 devices")
    status, _, error = jaxdistill(capsys, "run", tiny, "batch=6", "accumulate=4", "--quiet", "--out", tmp_path / "y")
    assert_one_sentence(status, error, "batch (6) must be a multiple of accumulate (4)")
    arguments = ["run", str(tiny), "batch=6", "--out", str(tmp_path / "z")]
    script = f"from jaxdistill.cli import main; raise SystemExit(main({arguments}))"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert_one_sentence(done.returncode, done.stderr.splitlines()[-1], "B (sequences) is 6", "mesh.fsdp")


def test_a_full_disk(tmp_path, tiny):
    """A bound on the size of files stands in for a full disk: writing past it fails as it does there."""

    def limit():
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    out = tmp_path / "out"
    start = [sys.executable, "-m", "jaxdistill", "run", str(tiny), "--quiet", "--out", str(out)]
    prepared = subprocess.run([*start[:-1], str(tmp_path / "before")], capture_output=True, text=True)
    assert prepared.returncode == 0, prepared.stderr
    full = subprocess.run(start, capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 2
    assert full.stderr.strip().splitlines()[-1].startswith("jaxdistill: ")
    assert "Traceback" not in full.stderr
    assert not (out / "result.json").exists()
    again = subprocess.run(start, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (out / "result.json").exists()


def test_diff_prints_what_differs(capsys, tmp_path, tiny):
    fork = tmp_path / "fork.py"
    fork.write_text(tiny.read_text().replace("alphabet=16", "alphabet=20").replace("steps=40", "steps=50"))
    status, out, _ = jaxdistill(capsys, "diff", tiny, fork)
    assert status == 0
    assert set(out.splitlines()) == {
        "data.source.alphabet: 16 -> 20",
        "steps: 40 -> 50",
        "teacher.run.data.source.alphabet: 16 -> 20",
        "teacher.run.steps: 40 -> 50",
    }
    assert jaxdistill(capsys, "diff", tiny, tiny)[1] == ""


def test_a_dry_run_prints_the_resolved_configuration(capsys, tiny, distilled):
    status, out, _ = jaxdistill(capsys, "run", tiny, "--dry-run")
    assert status == 0
    assert out == config.text(distilled)


def test_overrides_may_stand_anywhere(capsys, tiny):
    _, out, _ = jaxdistill(capsys, "run", tiny, "batch=4", "--dry-run", "steps=7")
    assert {"batch = 4", "steps = 7"} <= set(out.splitlines())
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(tiny), "--dry-run", "steps=7", "--unknown"])
    assert "unrecognized arguments: steps=7 --unknown" in capsys.readouterr().err


def test_fit_refuses_what_is_no_sweep(capsys, tmp_path):
    status, _, error = jaxdistill(capsys, "fit", tmp_path / "nowhere")
    assert_one_sentence(status, error, "nowhere")
    status, _, error = jaxdistill(capsys, "fit", tmp_path)
    assert_one_sentence(status, error, "holds no runs")
