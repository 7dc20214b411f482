"""Steps without an update and changes of the rate: only steps that are still to come."""

import pytest

from pipeline.settings.interventions import Interventions
from pipeline.settings.presets import find_preset

GIVEN = Interventions.of(("3:5", "9:9"), ("4:0.5", "8:2e-1"))


def test_the_named_steps_have_no_update():
    assert [step for step in range(1, 12) if GIVEN.skips(step)] == [3, 4, 5, 9]


def test_the_rate_changes_from_the_named_step_on():
    assert [GIVEN.factor(step) for step in (1, 3, 4, 7, 8, 100)] == [1, 1, 0.5, 0.5, 0.2, 0.2]


def test_only_what_affects_earlier_steps_counts_as_the_past():
    assert GIVEN.until(2) == Interventions.of((), ())
    assert GIVEN.until(4) == Interventions.of(("3:4",), ("4:0.5",))
    assert GIVEN.until(8) == Interventions.of(("3:5",), ("4:0.5", "8:0.2"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skip_steps", "5"),
        ("skip_steps", "0:4"),
        ("skip_steps", "5:4"),
        ("skip_steps", "a:b"),
        ("lr_factors", "0:0.5"),
        ("lr_factors", "5:-1"),
        ("lr_factors", "5:fast"),
    ],
)
def test_other_forms_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} .*must be"):
        find_preset("demo").replace({name: (value,)})


def test_a_checkpoints_settings_give_the_same():
    config = find_preset("demo").replace({"skip_steps": ("3:5",), "lr_factors": ("4:0.5",)})
    assert Interventions.of_flat(config.flat()) == Interventions.of(("3:5",), ("4:0.5",))
