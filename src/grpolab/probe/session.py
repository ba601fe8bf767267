"""One probe: rollouts once, every arm's first update on them, and what the gradients say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.config import Run
from grpolab.objective.beta import Beta
from grpolab.probe import measures
from grpolab.probe.arms import Arm, arms_of, parse_variants, recomposed
from grpolab.probe.gradients import make_basis, products
from grpolab.probe.offpolicy import OffPolicy, off_policy
from grpolab.probe.parts import pieces_of, scaled, token_weights
from grpolab.probe.records import METRICS, Probe, Reading
from grpolab.probe.rollouts import Pool, SharedCollector, make_pool, make_table
from grpolab.probe.source import Place, State, load_state, place_of, run_folder_of
from grpolab.probe.staleness import FRESH, By, Staleness
from grpolab.probe.table import Reader, SharedForward, Table, TableForward
from grpolab.sweep.compose import Command
from grpolab.tasks.base import Examples


def probe(
    variants: Sequence[Any] | str = (),
    *,
    overrides: Sequence[str] = (),
    run: str | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    config_dir: str | None = None,
    keep_gradients: bool = False,
    staleness: Sequence[int] = (),
    stale_by: By = "batch",
    fresh: int = FRESH,
    **settings: str,
) -> Probe:
    """The gradients of every variant on the same rollouts.

    Args:
        variants: the arms: an override each, or a list of overrides.
        overrides: as on the command line; several values of a key make arms, too.
        run: the job_id of a run, whose configuration, weights and step are taken.
        checkpoint: a run's folder, its checkpoint, or a saved model.
        out: a folder for cosine.csv, gradients.csv and the rest.
        config_dir: of YAML files of your own.
        keep_gradients: keep every arm's gradient; all of them in memory.
        staleness: further updates of the first arm after which to look again.
        stale_by: where those updates come from: "batch", this batch, or "fresh", whole training
            steps on fresh prompts.
        fresh: batches of fresh completions that the true gradient then is estimated from; 0: none.
        settings: overrides of groups: model="tiny", task="gsm8k".

    Raises:
        ConfigError: before anything is written.
    """
    words = [*overrides, *(f"{k}={v}" for k, v in settings.items())]
    place, words = located(words, run, checkpoint, config_dir)
    chosen = parse_variants(variants) if variants else []
    base, arms = arms_of(Command(words, config_dir=config_dir), chosen)
    asked = Staleness(tuple(staleness), stale_by, fresh)
    found = measure(base, arms, place, keep=keep_gradients, staleness=asked)
    if out is not None:
        write(found, Path(out))
    return found


def located(
    words: Sequence[str], run: str | None, checkpoint: str | Path | None, config_dir: str | None
) -> tuple[Place, list[str]]:
    """(where the weights lie, all overrides, those of a run first)."""
    if run is not None and checkpoint is not None:
        raise ConfigError("checkpoint: given beside run, which has its own; allowed: one of them.")
    if run is None and checkpoint is None:
        return Place(), list(words)
    folder = next((w.partition("=")[2] for w in words if w.startswith("output_dir=")), "outputs")
    path = run_folder_of(run, folder) if run is not None else Path(str(checkpoint))
    place = place_of(path, "run" if run is not None else "checkpoint")
    if place.folder is None:
        return place, [f"model.name={path}", *words]
    from omegaconf import OmegaConf

    raw: Any = OmegaConf.to_container(OmegaConf.load(place.folder / "config.yaml"))
    own = recomposed(raw, config_dir)
    return place, list({w.partition("=")[0]: w for w in [*own, *words]}.values())


def measure(
    base: Run, arms: Sequence[Arm], place: Place, *, keep: bool = False,
    staleness: Staleness | None = None,
) -> Probe:  # fmt: skip
    """Draws the rollouts and probes them."""
    from grpolab.sweep.preflight import check
    from grpolab.training.loop import prepare_torch

    ready = check(base)
    prepare_torch(base)
    state = load_state(base, ready.encoder, place, needs_reference=any(map(_has_model, arms)))
    memory: dict[Any, Any] = {}
    readings = [_collected(arm, state, ready.examples, memory) for arm in arms]
    pool = make_pool([r.rollouts for r in readings])
    outputs_run = next((a.run for a in arms if a.run.kl.needs_logits), arms[0].run)
    table = make_table(
        outputs_run, state.policy, state.reference, pool.rows, _needs(arms),
        ref=any(map(_has_model, arms)),
    )  # fmt: skip
    for reading, places in zip(readings, pool.places, strict=True):
        _read(reading, state, table, places)
    forward = SharedForward(outputs_run, state.policy, state.reference)
    found = _summary(readings, pool, table, forward, state, keep=keep)
    if staleness is not None and staleness.updates:
        view = _off_policy(readings, pool, table, forward, state, ready.examples, staleness)
        found.staleness, found.ratios = view.staleness, view.ratios
    return found


def _off_policy(
    readings: Sequence[Reading], pool: Pool, table: Table, forward: SharedForward, state: State,
    examples: Examples, asked: Staleness,
) -> OffPolicy:  # fmt: skip
    """Every arm's gradient after further updates of the first; changes the policy."""

    def gram(everyone: Sequence[Reading], rows: Pool, now: Table) -> measures.Array:
        for reading, places in zip(everyone, rows.places, strict=True):
            _slopes(reading, state, now, places)
        combinations = [
            (places, _padded(r, rows)) for r, places in zip(everyone, rows.places, strict=True)
        ]
        basis = make_basis(combinations, len(rows.rows))
        return products(forward, rows.rows, basis, now.outputs()).gram.numpy()

    return off_policy(readings, asked, table, pool.places, forward, state, examples, gram)


def _has_model(arm: Arm) -> bool:
    return bool(arm.run.kl.needs_reference and arm.run.reference.needs_model)


def _needs(arms: Sequence[Arm]) -> set[str]:
    """Outputs beside log-probs and entropy that some arm reads."""
    found = set()
    for run in (a.run for a in arms):
        if run.advantage.needs_distribution:
            found.add("collision")
        if run.kl.needs_logits:
            found.add("logits")
        if run.kl.needs_reference and run.sampler.match_support and run.sampler.truncates:
            found.add("whole")
    return found


def _collected(arm: Arm, state: State, examples: Examples, memory: dict[Any, Any]) -> Reading:
    """The rollouts that this arm would train on."""
    collector = SharedCollector(arm.run, state.policy, examples, memory)
    rollouts = collector.collect(state.step).rollouts
    if not rollouts.groups:
        raise ConfigError(
            f"selection: {arm.run.selection.name} leaves no group of these rollouts (arm "
            f"{arm.name}); allowed: more prompts_per_step, or selection=all."
        )
    beta = Beta(arm.run.kl, arm.run.steps)
    if state.beta is not None and getattr(arm.run.kl, "schedule", "") == "adaptive":
        beta.adaptive = state.beta
    return Reading(arm, rollouts, beta.at(state.step))


def _read(reading: Reading, state: State, table: Table, places: Tensor) -> None:
    """Fills in an arm's advantages, and what its first update would do to each token."""
    reader = _reader(reading, state, table, places)
    reader.score_logps(reading.rollouts, reading.beta)
    reading.rollouts.advantages = reader.advantages(reading.rollouts, state.baseline)
    _slopes(reading, state, table, places)


def _slopes(reading: Reading, state: State, table: Table, places: Tensor) -> None:
    """Fills in what an update would do to each token, by the log-probs of a table."""
    reader = _reader(reading, state, table, places)
    reading.slopes, reading.metrics = reader.read(reading.rollouts, state.step, reading.beta)


def _reader(reading: Reading, state: State, table: Table, places: Tensor) -> Reader:
    run = reading.arm.run
    return Reader(run, state.policy, TableForward(run, state.policy, table, places))


def _summary(
    readings: Sequence[Reading], pool: Pool, table: Table, forward: SharedForward, state: State,
    *, keep: bool,
) -> Probe:  # fmt: skip
    arms = len(readings)
    combinations: list[tuple[Tensor, Tensor]] = []
    pieces: list[tuple[tuple[str, str, str], Tensor, Tensor]] = []
    prompts = sorted({int(i) for r in readings for i in r.rollouts.prompt_index})
    for reading, places in zip(readings, pool.places, strict=True):
        flat = _padded(reading, pool)
        pieces += pieces_of(reading, flat, places, table)
        own = reading.rollouts.prompt_index.cpu().repeat_interleave(reading.rollouts.group_size)
        # a prompt that an arm has dropped adds nothing to its gradient
        combinations += [(places[own == i], flat[own == i]) for i in prompts]
    owner = np.kron(np.eye(arms), np.ones(len(prompts)))  # [J, J·P] whose term each one is
    terms_in_all = owner.shape[1]
    combinations += [(places, weights) for _, places, weights in pieces]
    basis = make_basis(combinations, len(pool.rows))
    sums = torch.from_numpy(np.pad(owner, ((0, 0), (0, len(pieces))))) if keep else None
    found = products(forward, pool.rows, basis, table.outputs(), keep=sums)
    whole = found.gram.numpy()
    terms = whole[:terms_in_all, :terms_in_all]
    gram = owner @ terms @ owner.T
    names = [r.arm.name for r in readings]
    by_arm = terms.reshape(arms, len(prompts), arms, len(prompts))
    errors = measures.cosine_errors(by_arm)
    rows = [_row(r, by_arm[j, :, j]) for j, r in enumerate(readings)]
    cosine = measures.cosines(gram)
    inner = whole[terms_in_all:, :terms_in_all] @ owner.T  # [pieces, J]
    parted = []
    for i, ((arm, kind, part), _, _) in enumerate(pieces):
        j = names.index(arm)
        share = inner[i, j] / gram[j, j] if gram[j, j] else math.nan
        parted.append({"arm": arm, "kind": kind, "part": part, "share": share})
    for j, row in enumerate(rows):
        row["cosine_to_first"], row["cosine_error"] = cosine[0, j], errors[0, j]
    return Probe(
        pd.DataFrame(cosine, index=pd.Index(names, name="arm"), columns=names),
        pd.DataFrame(errors, index=pd.Index(names, name="arm"), columns=names),
        pd.DataFrame(rows),
        token_weights(list(readings), state),
        pd.DataFrame(parted),
        pd.DataFrame([p for row in rows for p in scaled(row)]),
        pd.DataFrame(),
        state.step,
        found.passes,
        found.kept,
    )


def _padded(reading: Reading, pool: Pool) -> Tensor:
    """[N, D] an arm's slopes, as wide as the pool's completions."""
    wide = pool.rows.mask.shape[1]
    parts = []
    for value in reading.slopes.values():
        missing = wide - value.shape[1]
        filler = value.new_zeros(len(value), max(0, missing), *value.shape[2:])
        parts.append(torch.cat([value[:, :wide], filler], dim=1).flatten(1))
    return torch.cat(parts, dim=1)


def _row(reading: Reading, terms: np.ndarray[Any, Any]) -> dict[str, Any]:
    """One arm's line of gradients.csv, from the inner products of its groups' gradients."""
    total = max(0.0, float(terms.sum()))
    kept, noise = measures.signal(terms)
    found: dict[str, Any] = {"arm": reading.arm.name, "norm": math.sqrt(total)}
    found |= {k: reading.metrics.get(name, math.nan) for k, name in METRICS.items()}
    own = np.diag(terms)
    found["contributing_groups"] = float((own > 0).mean())
    found["groups"] = len(terms)
    found["signal"] = kept
    found["noise"] = noise
    found["snr"] = kept / noise if noise and noise > 0 else math.nan
    found["repeat_cosine"] = kept / total if total else math.nan
    found["half_cosine"] = measures.half_cosine(terms)
    return found


def write(found: Probe, folder: Path) -> None:
    """A CSV of each frame, figures/ and probe.html; the same probe, the same bytes of CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame, index in (
        ("cosine", found.cosine, True),
        ("cosine_error", found.cosine_error, True),
        ("gradients", found.gradients, False),
        ("tokens", found.tokens, False),
        ("parts", found.parts, False),
        ("scaling", found.scaling, False),
        ("staleness", found.staleness, False),
        ("ratios", found.ratios, False),
    ):
        if frame.empty:
            continue
        frame.to_csv(folder / f"{name}.csv", index=index, float_format="%.10g", lineterminator="\n")
    from grpolab.probe.figures import write_figures
    from grpolab.probe.page import write_page

    write_page(found, folder, write_figures(found, folder / "figures"))
