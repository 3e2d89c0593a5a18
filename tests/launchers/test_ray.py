"""Sweeps on a Ray cluster, whose nodes are processes of this machine."""

import signal

import jax
import numpy as np
import pytest

import jaxdistill
from jaxdistill import rundir, sweep
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.launchers import Ray
from jaxdistill.launchers.ray import DEFAULTS

pytest.importorskip("ray")


@pytest.fixture
def cluster(cache):
    """A head that runs nothing, and a function that adds a node of one core."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        yield made, lambda: made.add_node(num_cpus=1, **small)
        made.shutdown()


@pytest.mark.slow
def test_stopped_and_killed_and_without_its_machine_a_sweep_ends_as_it_would_have_undisturbed(
    tmp_path, cluster, sweeping
):
    """SIGTERM: its run has saved when the sweep ends. kill -9: Ray ends the task, and the run with it. The death of the
    machine that trains: another takes over. The results are those of processes of one machine, bit for bit."""
    nodes, add = cluster
    lost = add()
    overrides = ["steps=4000", "checkpoint_every=500"]
    disturbed = sweeping('{"student": config()}', overrides, ["--launcher", "ray", "--address", nodes.address])
    teacher = disturbed.out / "student-teacher"

    disturbed.start()
    assert disturbed.end(signal.SIGTERM).splitlines()[-1] == "jaxdistill: stopped; the same command continues"
    with rundir.lock(teacher):
        assert "the same command continues from there" in disturbed.log(teacher)

    disturbed.start()
    disturbed.end(signal.SIGKILL)
    with rundir.lock(teacher, patience=120):
        pass  # nobody is at work there any more

    disturbed.start()
    add()
    nodes.remove_node(lost, allow_graceful=False)
    assert disturbed.end().count(" again\n") == 1
    assert any("lost with its machine" in disturbed.log(run) for run in ("student", "student-teacher"))

    student = sweep.override_all(load_module(tmp_path / "experiment.py").config(), overrides)
    sweep.sweep({"student": student}, tmp_path / "local", quiet=True)
    for name in ("student", "student-teacher"):
        one, other = (jaxdistill.load_run(where / name) for where in (disturbed.out, tmp_path / "local"))
        assert one.result["loss"] == other.result["loss"]
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_what_no_machine_has_is_refused_before_anything_waits_for_it(supervised, tmp_path):
    with pytest.raises(InputError, match="needs 3 unobtainium, of which the cluster has 0"):
        sweep.sweep({"x": supervised}, tmp_path, launcher=Ray(resources={"unobtainium": 3}), quiet=True)


def test_a_cluster_that_is_not_there_is_one_sentence(supervised, tmp_path):
    with pytest.raises(InputError, match="cannot join the Ray cluster 127"):
        sweep.sweep({"x": supervised}, tmp_path, launcher=Ray(address="127.0.0.1:1"), quiet=True)
