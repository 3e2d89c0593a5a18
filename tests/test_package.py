"""What is shipped and how it is imported: the wheel, the links at the root, light names, pinned versions."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import packaging.requirements
import pytest

pytestmark = pytest.mark.xdist_group("package")  # one worker builds the wheel, once

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("models", "parallel", "losses")
HEAVY = ("orbax", "grain", "tensorstore", "matplotlib", "jaxdistill.run")


def python(code, cwd, *, check=True, **environment):
    """What a fresh interpreter makes of `code`; its PYTHONPATH is the one given here or none."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=inherited | environment, check=check, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a clean copy: building in place would leave files, and take up those of earlier builds."""
    source, out = tmp_path_factory.mktemp("source") / "jaxdistill", tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", out, source]
    subprocess.run(pip, check=True)
    (built,) = out.glob("jaxdistill-*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxdistill").rglob("*.py")}
    assert len(modules) > 50
    assert shipped == modules | {"jaxdistill/py.typed"}


def test_every_module_of_the_wheel_imports_from_anywhere(wheel, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", installed, wheel]
    subprocess.run(pip, check=True)
    code = """
import importlib, json, pkgutil, jaxdistill
names = {module.name for module in pkgutil.walk_packages(jaxdistill.__path__, "jaxdistill.")}
names -= {"jaxdistill.evals.harness"}  # says what to install where the extra `eval` is not there
print(json.dumps({name: importlib.import_module(name).__file__ for name in names}))
"""
    files = json.loads(python(code, elsewhere, PYTHONPATH=str(installed)).stdout)
    assert len(files) > 50
    assert all(pathlib.Path(file).is_relative_to(installed) for file in files.values())


@pytest.mark.parametrize("room", ROOMS)
def test_the_root_shows_each_room_by_a_relative_link(room):
    link = ROOT / room
    assert link.is_symlink()
    assert os.readlink(link) == f"jaxdistill/{room}"
    assert link.is_dir()


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_by_its_link_says_what_to_write(room):
    failed = python(f"import {room}", ROOT, check=False)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == f"ImportError: write: from jaxdistill import {room}"


@pytest.mark.parametrize(
    "name",
    ["jaxdistill", "jaxdistill.models.transformer", "jaxdistill.losses.forward_kl", "jaxdistill.scaling.laws"],
)
def test_light_names_leave_the_engine_alone(name, tmp_path):
    code = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"
    imported = json.loads(python(code, tmp_path).stdout)
    assert name in imported
    assert not set(HEAVY) & set(imported)


def test_the_engine_is_what_the_light_names_are_held_against(tmp_path):
    code = "import json, sys, jaxdistill.run; print(json.dumps(sorted(sys.modules)))"
    assert {"orbax", "tensorstore", "jaxdistill.run"} <= set(json.loads(python(code, tmp_path).stdout))


def pins(python_version):
    """{name: pinned requirement} of constraints.txt for one Python on Linux; two pins of one name are an error."""
    environment = {
        "python_version": python_version,
        "python_full_version": f"{python_version}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] not in "# "]
    found = [packaging.requirements.Requirement(line) for line in lines]
    here = [pin for pin in found if pin.marker is None or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in here}) == len(here)
    return {pin.name: pin for pin in here}


def test_constraints_name_versions_and_no_place():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|@|--", text)
    assert all(re.fullmatch(r"==[\w.+!]+", str(pin.specifier)) for pin in pins("3.12").values())


def test_constraints_pin_another_jax_for_each_python():
    old, new = pins("3.11"), pins("3.12")
    for name in ("jax", "jaxlib", "flax"):
        assert old[name].specifier != new[name].specifier


@pytest.mark.parametrize("python_version", ["3.11", "3.12"])
def test_constraints_satisfy_all_that_the_package_and_its_developers_ask_for(python_version):
    project, pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], pins(python_version)
    asked, extras = list(project["dependencies"]), ["dev"]
    while extras:
        for line in project["optional-dependencies"][extras.pop()]:
            requirement = packaging.requirements.Requirement(line)
            if requirement.name == project["name"]:
                extras.extend(requirement.extras)
            else:
                asked.append(line)
    assert len(asked) > 20
    for requirement in map(packaging.requirements.Requirement, asked):
        (pin,) = pinned[requirement.name.lower()].specifier
        assert requirement.specifier.contains(pin.version)
