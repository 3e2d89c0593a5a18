import dataclasses
from typing import Literal

import numpy as np
import pytest

from jaxdistill import config
from jaxdistill.errors import InputError
from jaxdistill.experiment import load_module
from jaxdistill.losses.objective import Term
from jaxdistill.optim import AdamW, Linear


@dataclasses.dataclass(frozen=True)
class Left:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Right:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Part:
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    side: Left | Right | None = None
    shape: tuple[int, ...] = (1, 2)
    count: int = 3
    rate: float = 0.1
    name: str = "x"


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("flag=true", "flag", True),
        ("kind=b", "kind", "b"),
        ("side=Right", "side", Right()),
        ("side=None", "side", None),
        ("shape=(4, 5, 6)", "shape", (4, 5, 6)),
        ("count=1e6", "count", 1_000_000),
        ("count=12_000", "count", 12_000),
        ("rate=3e-3", "rate", 3e-3),
        ("rate=2", "rate", 2.0),
        ("name=3", "name", "3"),
    ],
)
def test_an_override_is_read_by_the_type_of_its_field(assignment, field, value):
    new = getattr(config.override(Part(), [assignment]), field)
    assert new == value
    assert type(new) is type(value)


@pytest.mark.parametrize(
    "assignment",
    ["flag=1", "kind=c", "side=Up", "count=1.5", "count=many", "rate=fast", "rate", "kind.deep=1", "side.size=3"],
)
def test_an_override_that_does_not_fit_is_refused(assignment):
    with pytest.raises(InputError):
        config.override(Part(), [assignment])


def test_a_misspelling_is_answered_with_the_nearest_names(supervised):
    with pytest.raises(InputError, match=r"optim\.wramup.*did you mean 'warmup'"):
        config.override(supervised, ["optim.wramup=3"])
    with pytest.raises(InputError, match=r"objective\.cee.*did you mean 'ce'"):
        config.override(supervised, ["objective.cee.coef=3"])


def test_an_override_reaches_into_dicts_and_chosen_classes(supervised):
    changed = config.override(supervised, ["objective.ce.coef=0.5", "model.softcap=30", "seed=7"])
    assert changed.objective["ce"] == Term(supervised.objective["ce"].loss, 0.5)
    assert changed.model.softcap == 30.0
    assert config.diff(supervised, changed) == [
        ("model.softcap", "None", "30.0"),
        ("objective.ce.coef", "1.0", "0.5"),
        ("seed", "0", "7"),
    ]


def test_text_and_parse_are_inverse(distilled):
    scheduled = dataclasses.replace(
        distilled, objective={**distilled.objective, "ce": Term(distilled.objective["kl"].loss, Linear(1.0, 0.0))}
    )
    assert config.parse(config.text(scheduled)) == scheduled


def test_identity_follows_every_field_and_nothing_else(distilled):
    same = dataclasses.replace(distilled, objective=dict(distilled.objective))
    assert config.identity(same) == config.identity(distilled)
    seen = {config.identity(distilled)}
    for assignment in ("seed=1", "optim.peak=0.02", "teacher.run.steps=41", "objective.kl.loss.temperature=2"):
        seen.add(config.identity(config.override(distilled, [assignment])))
    assert len(seen) == 5


def test_numpy_numbers_have_the_text_of_their_value():
    assert config.text(AdamW(peak=np.float64(0.5), warmup=np.int64(3))) == config.text(AdamW(peak=0.5, warmup=3))


def test_what_has_no_text_is_refused():
    with pytest.raises(InputError, match="lambda"):
        config.text(Term(lambda z, target: z))
    with pytest.raises(InputError, match="set cannot stand"):
        config.text(Term({1, 2}))


def test_a_class_of_the_experiment_file_is_read_back_from_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass Loss:\n    power: float = 2.0\n"
        "\ndef config():\n    return Loss(3.0)\n"
    )
    made = load_module(file).config()
    text = config.text(made)
    assert text == "experiment = experiment:Loss\npower = 3.0\n"
    assert config.parse(text, lambda: load_module(file)) == made
    assert config.parse(text) == config.Unknown("experiment:Loss", {"power": 3.0})
