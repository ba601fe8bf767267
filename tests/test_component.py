"""The registry, the validation of settings, and the YAML files that mirror the defaults."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from grpolab.component import (
    ENTRY_POINTS,
    MODULES,
    NESTED,
    ConfigError,
    component,
    component_class,
    describe_type,
    from_config,
    names,
    registry,
    settings_of,
)

CONF = Path(__file__).parents[1] / "conf"
GROUPS = list(MODULES)
WITH_FILES = [g for g in GROUPS if g not in NESTED]
EVERY = [(group, name) for group in GROUPS for name in names(group)]
ON_FILE = [(group, name) for group in WITH_FILES for name in names(group)]
every_group = pytest.mark.parametrize("group", GROUPS)
every_component = pytest.mark.parametrize(("group", "name"), EVERY)
on_file = pytest.mark.parametrize(("group", "name"), ON_FILE)


def defaults_of(cls: type) -> dict[str, Any]:
    """Settings and their defaults, in order; "???" where there is none."""
    found: dict[str, Any] = {}
    for name, field in settings_of(cls).items():
        if field.default is not dataclasses.MISSING:
            found[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[name] = field.default_factory()
        else:
            found[name] = "???"
    return found


# --- What is refused ---------------------------------------------------------------------------


def refused(group: str, name: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        component(group, name, **settings)
    return str(caught.value)


def test_unknown_group() -> None:
    message = refused("clpi", "ppo")
    assert message.startswith("unknown group 'clpi'; allowed: ")
    assert message.endswith("; did you mean clip?")
    assert all(group in message for group in GROUPS)


def test_unknown_name() -> None:
    message = refused("clip", "cipso")
    assert message.startswith("clip: unknown clip 'cipso'; allowed: ")
    assert message.endswith("; did you mean cispo?")
    assert all(name in message for name in names("clip"))


def test_unknown_name_like_no_other() -> None:
    message = refused("clip", "zzzz")
    assert "did you mean" not in message
    assert message.endswith(".")


def test_unknown_setting() -> None:
    assert refused("clip", "ppo", hihg=0.3) == (
        "clip.hihg: unknown setting of clip=ppo (given 0.3); allowed: "
        "clip.masks, clip.low, clip.high; did you mean high?"
    )


def test_unknown_setting_of_a_component_without_any() -> None:
    message = refused("clip", "none", low=0.2)
    assert message == ("clip.low: unknown setting of clip=none (given 0.2); allowed: clip.masks.")


@pytest.mark.parametrize(
    ("group", "name", "setting", "value", "allowed"),
    [
        ("clip", "ppo", "low", "0.2", "a number ≥ 0."),
        ("clip", "ppo", "low", True, "a number ≥ 0."),
        ("clip", "ppo", "low", None, "a number ≥ 0."),
        ("clip", "ppo", "low", [0.2], "a number ≥ 0."),
        ("advantage", "group_zscore", "ddof", True, "a whole number ≥ 0 and ≤ 1."),
        ("advantage", "group_zscore", "ddof", 1.0, "a whole number ≥ 0 and ≤ 1."),
        ("advantage", "group_zscore", "ddof", "1", "a whole number ≥ 0 and ≤ 1."),
        ("advantage", "group_zscore", "clip", 2.0, "a list of number or null."),
        ("advantage", "group_zscore", "clip", [0.0, "1"], "a list of number or null."),
        ("kl", "k3", "placement", "los", "loss, reward"),
        ("kl", "k3", "placement", 1, "loss, reward"),
        ("kl", "k3", "horizon", 1.5, "a whole number or null ≥ 1."),
    ],
)
def test_wrong_type(group: str, name: str, setting: str, value: Any, allowed: str) -> None:
    message = refused(group, name, **{setting: value})
    assert message.startswith(f"{group}.{setting}: {value!r} is not allowed; allowed: {allowed}")


def test_nearest_choice() -> None:
    assert refused("kl", "k3", placement="rewrad").endswith("; did you mean reward?")


@pytest.mark.parametrize(
    ("group", "name", "setting", "value", "allowed"),
    [
        ("clip", "ppo", "low", -0.1, "a number ≥ 0."),
        ("clip", "ppo", "high", -math.inf, "a number ≥ 0."),
        ("clip", "ppo", "high", math.nan, "a number ≥ 0."),
        ("clip", "cispo", "ratio_max", 0.0, "a number > 0."),
        ("advantage", "group_zscore", "ddof", 2, "a whole number ≥ 0 and ≤ 1."),
        ("advantage", "group_zscore", "ddof", -1, "a whole number ≥ 0 and ≤ 1."),
        ("advantage", "group_zscore", "clip", [math.nan, 1.0], "a list of number or null."),
        ("kl", "k3", "clamp", [20.0, -1.0], "a list of number or null > 0."),
        ("selection", "dynamic", "max_rounds", 0, "a whole number ≥ 1."),
    ],
)
def test_out_of_bounds(group: str, name: str, setting: str, value: Any, allowed: str) -> None:
    message = refused(group, name, **{setting: value})
    assert message == f"{group}.{setting}: {value!r} is out of bounds; allowed: {allowed}"


@pytest.mark.parametrize(
    ("group", "name", "settings", "start"),
    [
        ("clip", "cispo", {"ratio_min": 6.0}, "clip.ratio_min: 6.0 given; allowed: at most"),
        ("advantage", "rloo", {"clip": [1.0, -1.0]}, "advantage.clip: [1.0, -1.0] given"),
        ("advantage", "rloo", {"clip": [1.0]}, "advantage.clip: [1.0] given"),
    ],
)
def test_conflicts(group: str, name: str, settings: dict[str, Any], start: str) -> None:
    assert refused(group, name, **settings).startswith(start)


# --- What is accepted --------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["low", "high"])
def test_clip_bounds_may_be_infinite(setting: str) -> None:
    assert getattr(component("clip", "ppo", **{setting: math.inf}), setting) == math.inf


@pytest.mark.parametrize(
    ("group", "name", "settings"),
    [
        ("clip", "ppo", {"low": 0.0, "high": 0.28}),
        ("clip", "ppo", {"high": 1}),  # a whole number is a number
        ("advantage", "group_zscore", {"ddof": 0, "eps": 0.0, "clip": [-1.0, 1.0]}),
        ("kl", "k3", {"clamp": None, "target_kl": 0.1}),
    ],
)
def test_settings_arrive(group: str, name: str, settings: dict[str, Any]) -> None:
    made = component(group, name, **settings)
    assert {k: getattr(made, k) for k in settings} == settings
    rest = {k: v for k, v in defaults_of(type(made)).items() if k not in settings}
    assert {k: getattr(made, k) for k in rest} == rest


def test_config_node_gives_the_same_component() -> None:
    node = OmegaConf.create({"name": "ppo", "low": 0.1, "high": math.inf})
    assert from_config("clip", node) == component("clip", "ppo", low=0.1, high=math.inf)


def test_config_node_without_a_name() -> None:
    with pytest.raises(ConfigError, match=r"^clip\.name: missing; allowed: .*ppo"):
        from_config("clip", {"low": 0.2})


def test_config_node_under_another_key() -> None:
    with pytest.raises(ConfigError, match=r"^second\.clip\.low: '1' is not allowed"):
        from_config("clip", {"name": "ppo", "low": "1"}, key="second.clip")


# --- Every registered component ----------------------------------------------------------------


@every_component
def test_is_a_documented_frozen_dataclass(group: str, name: str) -> None:
    cls = component_class(group, name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (cls.group, cls.name) == (group, name)  # type: ignore[attr-defined]
    # read from the source: a dataclass without a docstring is given its signature as one
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    assert ast.get_docstring(tree)


@every_component
def test_settings_cannot_be_changed(group: str, name: str) -> None:
    cls = component_class(group, name)
    made: Any = object.__new__(cls)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.anything = 1


@on_file
def test_yaml_agrees_with_the_defaults(group: str, name: str) -> None:
    loaded = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=False)
    expected = {"name": name, **defaults_of(component_class(group, name))}
    assert isinstance(loaded, dict)
    assert list(loaded.items()) == list(expected.items())
    assert [type(v) for v in loaded.values()] == [type(v) for v in expected.values()]


@on_file
def test_yaml_makes_the_component(group: str, name: str) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=False)
    assert isinstance(node, dict)
    missing = [k for k, v in node.items() if v == "???"]
    if missing:
        with pytest.raises(ConfigError, match=rf"^{group}\.({'|'.join(map(str, missing))})\b"):
            from_config(group, node)  # type: ignore[arg-type]
    else:
        made = from_config(group, node)  # type: ignore[arg-type]
        assert made == component(group, name)
        assert type(made) is component_class(group, name)


@pytest.mark.parametrize("group", WITH_FILES)
def test_every_yaml_has_a_component_and_the_reverse(group: str) -> None:
    assert sorted(p.stem for p in (CONF / group).glob("*.yaml")) == names(group)


@every_component
def test_every_setting_has_a_type_in_words(group: str, name: str) -> None:
    cls = component_class(group, name)
    hints = inspect.get_annotations(cls, eval_str=True)
    for setting in settings_of(cls):
        if setting in hints:
            words = describe_type(hints[setting])
            assert words
            assert not set(words) & set("[]<>")


# --- Components from outside -------------------------------------------------------------------

OUTSIDE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from grpolab.objective.clip import Clip
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Halved(Clip):
    """−s·A·lp."""

    name: ClassVar[str] = "halved"

    share: float = setting(0.5, "s", gt=0, le=1)

    def formula(self, x, plan):
        never = x.d != x.d
        return -self.share * x.advantages * x.logps, never, never


@dataclass(frozen=True)
class Nothing:
    share: float = 0.5


class Plain:
    group = "clip"
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module that defines components of its own."""
    (tmp_path / "outside_components.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_components", raising=False)
    return "outside_components"


def test_target_from_outside(outside: str) -> None:
    made = from_config("clip", {"_target_": f"{outside}.Halved", "share": 0.25})
    assert (type(made).__name__, made.share, made.level) == ("Halved", 0.25, "token")
    assert from_config("clip", {"_target_": f"{outside}.Halved"}).share == 0.5
    assert "halved" not in names("clip")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 2.0}, r"^clip\.share: 2\.0 is out of bounds; allowed: a number > 0 and ≤ 1"),
        ({"share": "0.5"}, r"^clip\.share: '0\.5' is not allowed"),
        ({"shaer": 0.5}, r"^clip\.shaer: unknown setting of clip=halved .*mean share\?$"),
    ],
)
def test_target_settings_are_checked(outside: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_config("clip", {"_target_": f"{outside}.Halved", **settings})


@pytest.mark.parametrize(
    ("group", "attribute", "message"),
    [
        ("advantage", "Halved", r"^advantage\._target_: .*has group 'clip'; .*'advantage'\.$"),
        ("clip", "Nothing", r"^clip\._target_: .*has group None; allowed here: 'clip'\.$"),
        ("clip", "Plain", r"^clip\._target_: .*is no dataclass"),
        ("clip", "Absent", r"^clip\._target_: cannot import 'outside_components\.Absent'"),
    ],
)
def test_wrong_target(outside: str, group: str, attribute: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_config(group, {"_target_": f"{outside}.{attribute}"})


@pytest.mark.parametrize("target", ["no_such_module.Thing", "nodots", ""])
def test_target_that_cannot_be_imported(target: str) -> None:
    with pytest.raises(ConfigError, match=r"^clip\._target_: cannot import"):
        from_config("clip", {"_target_": target})


@pytest.mark.parametrize("value", ["{module}", "{module}:Halved"])
def test_entry_point(outside: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", value.format(module=outside), ENTRY_POINTS)

    def entry_points(group: str) -> list[EntryPoint]:
        return [entry] if group == entry.group else []

    # by its module name: `grpolab.component` as an attribute is the function
    monkeypatch.setattr(importlib.import_module("grpolab.component"), "entry_points", entry_points)
    found = registry.__wrapped__("clip")  # beside the cache
    assert found["halved"].__name__ == "Halved"
    assert found.keys() - {"halved"} == registry("clip").keys()
    assert "halved" not in registry.__wrapped__("advantage")
