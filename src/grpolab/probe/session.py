"""One probe: rollouts once, every arm's first update on them, and what the gradients say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.objective.beta import Beta
from grpolab.probe import measures
from grpolab.probe.arms import Arm, parse_variants
from grpolab.probe.gradients import products
from grpolab.probe.offpolicy import OffPolicy, off_policy
from grpolab.probe.passes import Passes
from grpolab.probe.records import Probe, Reading
from grpolab.probe.request import PARTS, Request, Resolved
from grpolab.probe.rollouts import Pool, SharedCollector, make_pool, make_table
from grpolab.probe.sizes import by_size
from grpolab.probe.source import State, load_state
from grpolab.probe.staleness import FRESH, By, Staleness
from grpolab.probe.summary import slopes_of, summary
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
    staleness: Sequence[int] | None = (),
    stale_by: By = "batch",
    fresh: int = FRESH,
    parts: Sequence[str] | None = PARTS,
    group_sizes: Sequence[int] | None = (),
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
        parts: of signal, shares, tokens: what is wanted beside norms and cosines; None: nothing.
        group_sizes: smaller groups whose signal and noise are measured beside the whole ones: a
            backward and a forward-mode pass over the batch for each size and each arm that differs
            from the others.
        settings: overrides of groups: model="tiny", task="gsm8k".

    Raises:
        ConfigError: before anything is written.
    """
    words = [*overrides, *(f"{k}={v}" for k, v in settings.items())]
    request = Request(
        Command(words, config_dir=config_dir), parse_variants(variants) if variants else [], run,
        checkpoint, tuple(parts or ()), tuple(group_sizes or ()),
        Staleness(tuple(staleness or ()), stale_by, fresh),
    )  # fmt: skip
    found = measure(request.resolved(), keep=keep_gradients)
    if out is not None:
        write(found, Path(out))
    return found


def measure(asked: Resolved, *, keep: bool = False) -> Probe:
    """Draws the rollouts and probes them."""
    from grpolab.sweep.preflight import check
    from grpolab.training.loop import prepare_torch
    from grpolab.training.memory import keep_freed_memory

    base, arms = asked.base, asked.arms
    ready = check(base)
    prepare_torch(base)
    keep_freed_memory()
    references = any(map(_has_model, arms))
    state = load_state(base, ready.encoder, asked.place, needs_reference=references)
    memory: dict[Any, Any] = {}
    readings = [_collected(arm, state, ready.examples, memory) for arm in arms]
    pool = make_pool([r.rollouts for r in readings])
    outputs_run = next((a.run for a in arms if a.run.kl.needs_logits), arms[0].run)
    table = make_table(
        outputs_run, state.policy, state.reference, pool.rows, _needs(arms), ref=references
    )
    for reading, places in zip(readings, pool.places, strict=True):
        _read(reading, state, table, places)
    found = summary(readings, pool, table, state, asked.request, keep=keep)
    if asked.request.group_sizes:

        def read(reading: Reading, places: Tensor) -> None:
            _read(reading, state, table, places)

        found.sizes = pd.DataFrame(by_size(readings, pool, state, asked.request.group_sizes, read))
    if asked.request.staleness.updates:
        forward = SharedForward(outputs_run, state.policy, state.reference)
        view = _off_policy(
            readings, pool, table, forward, state, ready.examples, asked.request.staleness
        )
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
        return products(Passes(rows.rows), slopes_of(everyone, rows, state)).gram.numpy()

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


def write(found: Probe, folder: Path) -> None:
    """A CSV of each frame, figures/ and probe.html; the same probe, the same bytes of CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame, index in (
        ("cosine", found.cosine, True),
        ("cosine_error", found.cosine_error, True),
        ("gradients", found.gradients, False),
        ("tokens", found.tokens, False),
        ("parts", found.parts, False),
        ("difficulty", found.difficulty, False),
        ("scaling", found.scaling, False),
        ("sizes", found.sizes, False),
        ("staleness", found.staleness, False),
        ("ratios", found.ratios, False),
    ):
        if frame.empty:
            continue
        frame.to_csv(folder / f"{name}.csv", index=index, float_format="%.10g", lineterminator="\n")
    from grpolab.probe.figures import write_figures
    from grpolab.probe.page import write_page

    write_page(found, folder, write_figures(found, folder / "figures"))
