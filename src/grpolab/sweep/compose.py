"""From command-line overrides to resolved configurations: one, or those of a sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpolab.component import MISSING, ConfigError, from_config, outside, settings_of
from grpolab.config import COMPONENTS
from grpolab.sweep.explain import conf_dir, explain, first_line
from grpolab.sweep.factors import Interval, Point, Values


@dataclass
class Command:
    """What stands behind `grpolab train`: overrides, and Hydra's own flags."""

    overrides: list[str]
    multirun: bool = False
    config_dir: str | None = None
    rest: list[str] = field(default_factory=list)
    """Flags handed to Hydra as they are (--help, --cfg, --shell-completion …)."""
    words: list[str] = field(default_factory=list)
    """The whole command as it was given, for the record."""


def parse_command(arguments: Sequence[str]) -> Command:
    """Splits overrides from flags."""
    command = Command([], words=list(arguments))
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word in ("-m", "--multirun"):
            command.multirun = True
        elif word in ("--config-dir", "-cd"):
            if not queue:
                raise ConfigError("--config-dir: missing; allowed: a folder of YAML files.")
            command.config_dir = queue.pop(0)
        elif word.startswith("--config-dir="):
            command.config_dir = word.partition("=")[2]
        elif word.startswith("-"):
            command.rest.append(word)
            if word in ("--cfg", "-c", "--package", "-p", "--info", "-i") and queue:
                command.rest.append(queue.pop(0))
        else:
            command.overrides.append(word)
    if command.config_dir is not None and not Path(command.config_dir).is_dir():
        raise ConfigError(f"--config-dir: no folder {command.config_dir!r}.")
    return command


@dataclass(frozen=True)
class Job:
    """One composed run of a command."""

    overrides: tuple[str, ...]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The composed jobs, and which keys are swept."""

    jobs: list[Job]
    factors: list[str]
    multirun: bool
    launcher: dict[str, Any] = field(default_factory=dict)
    """The choice of hydra/launcher, with its `_target_`."""
    about: list[str] = field(default_factory=list)
    """The design in words."""
    searched: bool = False
    """Whether the only job is what a search starts from."""
    report_seeds: list[int] = field(default_factory=list)
    """With a search: those that its best configuration is to run on."""


@dataclass(frozen=True)
class Refused:
    """A job that cannot run, and why."""

    overrides: tuple[str, ...]
    error: str


def expand(command: Command, refused: list[Refused] | None = None) -> Sweep:
    """Composes every job of a command, as the design arranges them; nothing is written.

    Args:
        command: the overrides.
        refused: where given, jobs that do not compose are put there instead of raised.

    Raises:
        ConfigError: an unknown choice or key, a sweep without -m, factors the design cannot use.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = _parsed(OverridesParser.create(), command.overrides)
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    swept = [str(o.key_or_group) for o in parsed if o.is_sweep_override()]
    with _Composer(command.config_dir) as compose:
        base = compose(fixed, with_hydra=True)
        if (base["search"] or {}).get("name", "none") != "none":
            job = Job(tuple(fixed), compose(fixed))
            return Sweep(
                [job], [], False, base["hydra"]["launcher"], searched=True,
                report_seeds=_report_seeds(parsed, base, job),
            )  # fmt: skip
        multirun = command.multirun or base["hydra"]["mode"] == "MULTIRUN"
        if swept and not multirun:
            raise ConfigError(f"{swept[0]}: several values make a sweep; allowed with -m.")
        if not multirun:
            return Sweep([Job(tuple(fixed), compose(fixed))], [], False)
        # with the configurations at hand, so that clip=glob(*) knows its choices
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        params = base["hydra"]["sweeper"].get("params") or {}
        named = [f"{k}={v}" for k, v in params.items()]
        arranged = arrange(_parsed(parser, [*named, *command.overrides]), base)
        jobs = _composed(compose, arranged.jobs, refused)
    for job in jobs:
        if job.raw.get("design") != base["design"]:
            raise ConfigError(
                f"design: {job.raw.get('design')} in a job of a sweep arranged by "
                f"{base['design']}; allowed: one design for all jobs."
            )
    return Sweep(jobs, arranged.factors, True, base["hydra"]["launcher"], arranged.about)


def compose_all(config_dir: str | None, jobs: Sequence[Sequence[str]]) -> list[Job]:
    """The jobs of these lists of overrides.

    Raises:
        ConfigError: one of them cannot be composed.
    """
    with _Composer(config_dir) as compose:
        return [Job(tuple(job), compose(list(job))) for job in jobs]


def choices_of(config_dir: str | None, overrides: list[str]) -> dict[str, str]:
    """{group: choice} that these overrides come to, those of an experiment file included."""
    from hydra import compose

    with _Composer(config_dir) as checked:
        checked(overrides)
        found = compose("train", overrides=overrides, return_hydra_config=True)
        chosen = found.hydra.runtime.choices
        return {str(k): str(v) for k, v in chosen.items() if v is not None}


def _report_seeds(parsed: Sequence[Any], base: Mapping[str, Any], job: Job) -> list[int]:
    """The seeds of a search's command, which alone may be several; no other factor may be swept."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = {str(o.key_or_group) for o in parsed}
    params = base["hydra"]["sweeper"].get("params") or {}
    named = [f"{k}={v}" for k, v in params.items() if k not in given]
    swept = [
        o for o in (*parsed, *_parsed(OverridesParser.create(), named)) if o.is_sweep_override()
    ]
    for override in swept:
        if override.key_or_group != "seed":
            raise ConfigError(
                f"{override.key_or_group}: several values given with "
                f"search={base['search']['name']}; allowed: one, or its place in search.space."
            )
    texts = _values(swept[-1]) if swept else [str(job.raw["seed"])]
    try:
        return [int(text) for text in texts] if not isinstance(texts, Interval) else []
    except ValueError:
        raise ConfigError(f"seed: {texts} given; allowed: whole numbers.") from None


def _parsed(parser: Any, overrides: Sequence[str]) -> list[Any]:
    try:
        return list(parser.parse_overrides(list(overrides)))
    except Exception as error:  # Hydra's own, OmegaConf's, and ValueErrors of either
        raise ConfigError(f"command line: {first_line(error)}") from error


def _composed(
    compose: Any, jobs: Sequence[Sequence[str]], refused: list[Refused] | None
) -> list[Job]:
    found = []
    for overrides in jobs:
        try:
            found.append(Job(tuple(overrides), compose(list(overrides))))
        except ConfigError as error:
            if refused is None:
                raise
            refused.append(Refused(tuple(overrides), str(error)))
    return found


@dataclass(frozen=True)
class Arranged:
    """A design's jobs as overrides, the keys it sweeps, and the design in words."""

    jobs: list[list[str]]
    factors: list[str]
    about: list[str]


def arrange(overrides: Sequence[Any], base: Mapping[str, Any]) -> Arranged:
    """The jobs that the design makes of parsed overrides, each with all of them, in the order in
    which their keys first stand.

    Args:
        overrides: Hydra's; of one key the last counts.
        base: with "design", the chosen one's node, and "baseline", that of tracking.
    """
    last = {str(o.key_or_group): o for o in overrides}  # a fixed value ends an experiment's sweep
    chosen = {o.get_key_element(): o for o in overrides}
    kept = {
        element: o
        for element, o in chosen.items()
        if not o.is_sweep_override() or last[str(o.key_or_group)] is o
    }
    factors = {str(o.key_or_group): _values(o) for o in kept.values() if o.is_sweep_override()}
    for key, values in factors.items():
        if isinstance(values, list) and not values:  # clip=glob(z*)
            raise ConfigError(f"{key}: no choice matches; allowed: a pattern that one does.")
        if key.partition(".")[0] in ("design", "search") or key.startswith("tracking.baseline"):
            raise ConfigError(f"{key}: several values given; allowed: one for the whole sweep.")
    design = from_config("design", base["design"] or {})
    points = design(factors, base["baseline"])
    jobs = [[f"{element}={_text(o, point)}" for element, o in kept.items()] for point in points]
    return Arranged(jobs, list(factors), design.about(factors, base["baseline"]))


def _values(override: Any) -> Values:
    """A sweep's values as Hydra's own sweeper writes them, or its interval."""
    if override.is_interval_sweep():
        sweep = override.value()
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        return Interval(sweep.start, sweep.end, log="log" in sweep.tags, whole=whole)
    try:
        return list(override.sweep_string_iterator())
    except Exception as error:  # as in `_parsed`
        raise ConfigError(f"{override.key_or_group}: {first_line(error)}") from error


def _text(override: Any, point: Point) -> str:
    """The value that an override has at a point."""
    if override.is_sweep_override():
        return point[str(override.key_or_group)]
    return str(override.get_value_element_as_str())


PLAIN_SEED = re.compile(r"seed=(0|[1-9][0-9]{0,8})")


class _Composer:
    """Hydra's compose API over our conf/ and the user's --config-dir."""

    def __init__(self, config_dir: str | None) -> None:
        self.config_dir = config_dir
        self._seedless: dict[tuple[str, ...], Any] = {}
        """Configurations before interpolation, by their overrides without the seed."""

    def __enter__(self) -> Any:
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        register_outside_components()
        make_local_the_default_launcher()
        GlobalHydra.instance().clear()
        self._context = initialize_config_dir(str(conf_dir()), version_base="1.3")
        self._context.__enter__()
        if self.config_dir is not None:
            _search_too(Path(self.config_dir))
        return self._compose

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def _compose(self, overrides: list[str], *, with_hydra: bool = False) -> dict[str, Any]:
        from hydra import compose
        from omegaconf import OmegaConf

        for override in overrides:
            if override.partition("=")[0] == "~seed":
                raise ConfigError(f"seed: {override} takes it away; allowed: a whole number.")
        try:
            if with_hydra:
                config = compose("train", overrides=overrides, return_hydra_config=True)
                nodes = {k: OmegaConf.select(config, f"hydra.{k}") for k in ("sweeper", "launcher")}
                mode = str(getattr(config.hydra.mode, "name", config.hydra.mode))
                plain = {k: OmegaConf.to_container(v, resolve=False) for k, v in nodes.items()}
                ours = {"design": "design", "search": "search", "baseline": "tracking.baseline"}
                picked = {k: OmegaConf.select(config, key) for k, key in ours.items()}
                return {"hydra": {"mode": mode, **plain}} | {
                    k: None if v is None else OmegaConf.to_container(v, resolve=True)
                    for k, v in picked.items()
                }
            found = OmegaConf.to_container(self._seeded(overrides), resolve=True)
        except Exception as error:  # as in `_parsed`
            raise ConfigError(explain(error, overrides)) from error
        assert isinstance(found, dict)
        return {str(k): v for k, v in found.items()}

    def _seeded(self, overrides: list[str]) -> Any:
        """What Hydra composes of overrides. Jobs that differ in their seed alone, as most of a
        sweep do, are composed once: no default depends on it, and values that do are interpolated
        behind."""
        from hydra import compose

        own = [o for o in overrides if o.lstrip("+~").partition("=")[0] == "seed"]
        plain = PLAIN_SEED.fullmatch(own[0]) if len(own) == 1 else None
        if plain is None:
            return compose("train", overrides=overrides)
        others = tuple(o for o in overrides if o != own[0])
        if others not in self._seedless:
            self._seedless[others] = compose("train", overrides=list(others))
        found = self._seedless[others]
        found.seed = int(plain.group(1))
        return found


def _search_too(folder: Path) -> None:
    """Adds a folder to Hydra's search path where `--config-dir` puts it: behind ours, before the
    schemas. The loader reads the path once; it is read again after the addition."""
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    loader: Any = GlobalHydra.instance().config_loader()
    loader.config_search_path.prepend(
        "command-line", f"file://{folder.absolute()}", SearchPathQuery(provider="schema")
    )
    loader.repository = ConfigRepository(config_search_path=loader.config_search_path)


def make_local_the_default_launcher() -> None:
    """What Hydra takes where nobody chooses a launcher is its `basic`: it becomes ours. An override
    in train.yaml would do that too, but would beat those of experiment files."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    Plugins.instance()  # the scan that registers Hydra's own, which ours has to follow
    local = OmegaConf.load(conf_dir() / "hydra" / "launcher" / "local.yaml")
    ConfigStore.instance().store(group="hydra/launcher", name="basic", node=local)


def register_outside_components() -> None:
    """Components that other packages add by entry point become choices of their group, with the
    settings of their class, unless a YAML file of that name exists."""
    from dataclasses import MISSING as UNSET

    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for group in COMPONENTS:
        for name, cls in outside(group).items():
            if (conf_dir() / group / f"{name}.yaml").exists():
                continue
            node: dict[str, Any] = {"name": name}
            for key, item in settings_of(cls).items():
                if item.default is not UNSET:
                    node[key] = item.default
                elif item.default_factory is not UNSET:
                    node[key] = item.default_factory()
                else:
                    node[key] = MISSING
            store.store(group=group, name=name, node=node, provider=cls.__module__)
