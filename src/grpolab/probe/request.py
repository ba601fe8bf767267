"""What is to be probed, resolved and checked before any model is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError, nearest
from grpolab.config import Run
from grpolab.policy.weights import check_weights
from grpolab.probe.arms import Arm, arms_of, recomposed
from grpolab.probe.staleness import Staleness
from grpolab.sweep.compose import Command

PARTS = ("signal", "shares", "tokens")
"""What may be asked for beside norms and cosines."""
MODEL = "model"
"""What a run exports at its end."""


@dataclass
class Place:
    """Where a run's weights lie; None: the model of the configuration."""

    folder: Path | None = None
    weights: Path | None = None
    """A checkpoint's folder, or a saved model's."""
    key: str = "checkpoint"
    """What named it, for errors."""


@dataclass
class Request:
    """A command: overrides, arms, whose weights, and what is wanted of them."""

    command: Command
    variants: list[list[str]] = field(default_factory=list)
    """The overrides of each arm."""
    run: str | None = None
    """A job_id."""
    checkpoint: str | Path | None = None
    parts: tuple[str, ...] = PARTS
    group_sizes: tuple[int, ...] = ()
    """Smaller groups whose noise is measured, too."""
    staleness: Staleness = field(default_factory=Staleness)

    def resolved(self) -> Resolved:
        """The arms and the weights' place.

        Raises:
            ConfigError: whatever cannot be probed.
        """
        for name in self.parts:
            if name not in PARTS:
                raise ConfigError(
                    f"parts: {name!r} given; allowed: {', '.join(PARTS)}"
                    f"{nearest(name, PARTS) or '.'}"
                )
        place, words = self._located()
        base, arms = arms_of(Command(words, config_dir=self.command.config_dir), self.variants)
        self._check(base, arms)
        return Resolved(base, arms, place, self)

    def _located(self) -> tuple[Place, list[str]]:
        """(where the weights lie, all overrides, those of a run first)."""
        words = list(self.command.overrides)
        if self.run is not None and self.checkpoint is not None:
            raise ConfigError(
                "checkpoint: given beside run, which has its own; allowed: one of them."
            )
        if self.run is None and self.checkpoint is None:
            return Place(), words
        outputs = next((w.partition("=")[2] for w in words if w.startswith("output_dir=")), None)
        known = self.run is not None
        path = run_folder_of(str(self.run), outputs or "outputs") if known else self.checkpoint
        place = place_of(Path(str(path)), "run" if known else "checkpoint")
        if place.folder is None:
            return place, [f"model.name={path}", *words]
        own = recomposed(_config_of(place.folder, place.key), self.command.config_dir, place.key)
        return place, list({w.partition("=")[0]: w for w in [*own, *words]}.values())

    def _check(self, base: Run, arms: Sequence[Arm]) -> None:
        if base.hardware.dtype == "float16":
            raise ConfigError(
                "hardware.dtype: float16 given, whose gradients a training run has to scale; "
                "allowed in a probe: float32, bfloat16."
            )
        size = base.sampler.group_size
        for other in self.group_sizes:
            if not 1 < other < size or size % other:
                fitting = [str(n) for n in range(2, size) if size % n == 0]
                raise ConfigError(
                    f"group_sizes: {other} given with sampler.group_size={size}; allowed: "
                    f"{', '.join(fitting) or 'none'}."
                )
        for run in (a.run for a in arms):
            elsewhere = self.staleness.updates or self.run or self.checkpoint
            if run.selection.replays and elsewhere:
                raise ConfigError(
                    "selection: replay given, whose groups of earlier steps a probe does not have; "
                    "allowed: replay at the first step without staleness, or another selection."
                )


@dataclass
class Resolved:
    """A request whose arms and place are known."""

    base: Run
    arms: list[Arm]
    place: Place
    request: Request


def run_folder_of(job: str, output_dir: str) -> Path:
    """The folder of a run of any study.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(p for p in Path(output_dir).glob(f"*/{job}") if (p / "config.yaml").exists())
    if not found:
        raise ConfigError(
            f"run: no run {job!r} below {output_dir!r}; allowed: the job_id of a run that has "
            "started, as `grpolab status` shows them."
        )
    return found[0]


def _config_of(folder: Path, key: str) -> Mapping[str, Any]:
    """A run's resolved configuration.

    Raises:
        ConfigError: its file is none.
    """
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # a file from elsewhere: what a YAML parser may raise is not ours
        raise ConfigError(
            f"{key}: {str(path)!r} cannot be read ({type(error).__name__}); allowed: the folder of "
            "a run, with the config.yaml that the run wrote."
        ) from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(
            f"{key}: {str(path)!r} is no configuration; allowed: the folder of a run, with the "
            "config.yaml that the run wrote."
        )
    return found


def place_of(path: Path, key: str = "checkpoint") -> Place:
    """What lies at a path: a run's folder, its checkpoint/, checkpoint.old/ or model/, or any saved
    model. A part that is named is used or refused: other weights would answer another question.

    Raises:
        ConfigError: no weights are there, or none that are whole.
    """
    if path.is_dir():  # a misspelt name in a run's folder is not that run
        from grpolab.training import checkpoint

        if (path / "config.yaml").exists():
            return Place(path, _newest(path, key), key)
        run = path.parent if (path.parent / "config.yaml").exists() else None
        if run is not None and path.name in checkpoint.PARTS:
            damage = _damage(path)
            if damage:
                raise _not_whole(path, damage, key)
            return Place(run, path, key)
        if (run is None or path.name == MODEL) and (path / "config.json").exists():
            check_weights(path, str(path), key)
            return Place(run, path, key)
    raise ConfigError(
        f"{key}: no weights at {str(path)!r}; allowed: a run's folder, its checkpoint, or a saved "
        "model."
    )


def _newest(folder: Path, key: str) -> Path:
    """A run's newest whole checkpoint, or else what it exported at its end."""
    from grpolab.training import checkpoint

    damages: list[str] = []
    found = None
    for part in filter(Path.is_dir, (folder / name for name in checkpoint.PARTS)):
        damage = _damage(part)
        if damage is None:
            found = part
            break
        damages.append(damage)
    saved = folder / MODEL
    if found is None and (saved / "config.json").exists():
        check_weights(saved, str(saved), key)
        found = saved
    if found is None and damages:
        raise _not_whole(folder, damages[0], key)
    if found is None:
        raise ConfigError(
            f"{key}: {str(folder)!r} has no weights yet; allowed: a run that is done, or that "
            "has a checkpoint (checkpoint.every=10)."
        )
    if damages:
        warnings.warn(f"{', '.join(damages)}; {found} is used instead", stacklevel=3)
    return found


def _damage(part: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    from grpolab.training import checkpoint

    file = checkpoint.damaged(part)
    if file is None:
        return None
    what = "damaged (its checksum has changed)" if (part / file).exists() else "missing"
    return f"{part / file} is {what}"


def _not_whole(path: Path, damage: str, key: str) -> ConfigError:
    return ConfigError(
        f"{key}: {str(path)!r} has no whole weights: {damage}; allowed: a checkpoint as it was "
        "written."
    )
