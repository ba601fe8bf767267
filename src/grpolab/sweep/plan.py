"""What a sweep would do, before it does it: jobs, arms, what its seeds can show, what it costs.

`plan` gives what `grpolab plan … out=FILE.json` writes. Its keys, which stay:

- command, study, output_dir: text. design: {name, settings, about: [sentence]}.
- factors: {key: [value]}, without the seed. baseline: {key: value}. seeds: [number].
- jobs: [{job_id, arm, seed, baseline, overrides, factors, state, steps, tokens_at_most, estimate}];
  state is done, running, pending (never started, or to be gone on with) or failed; estimate is
  {tokens, seconds, bytes, past_runs}, or null where no past run has the job's shape.
- arms: [{arm, baseline, changes: {key: {from, to}}, seeds, states: {state: number}}].
- seeds_can_show: the fields of `grpolab.results.power.Seeds`, of the family of comparisons that
  `grpolab analyze` would test with the same metric= and by= (family: {metrics, by, against: {arm:
  the arm it is compared with}}), and sentences; null with one arm.
- cost of what is left to do: {jobs, jobs_with_estimate, past_runs, tokens, tokens_at_most, seconds,
  workers, wall_seconds, bytes}; sums over the jobs that have an estimate, null where none has.
- done: [job_id]. notes: [sentence].
- refused: [{overrides, error}]. Where there are any the exit code is 2, and of the other keys only
  command and factors (with the seed, by the values of the jobs refused) say anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpolab.component import ConfigError, settings_of
from grpolab.config import Run
from grpolab.results.family import METRIC
from grpolab.sweep.compose import Job, Refused, Sweep
from grpolab.sweep.manifest import Member, job_value, members
from grpolab.sweep.notes import notes
from grpolab.sweep.past import Estimate, estimate, most_tokens, past_runs, shape_of
from grpolab.sweep.state import STATES, job_state
from grpolab.tracking.folder import RunFolder

if TYPE_CHECKING:
    from grpolab.results.power import Seeds


@dataclass(frozen=True)
class Checked:
    """A job that nothing speaks against."""

    job: Job
    run: Run
    held_out: int
    """Held-out examples of its task."""


def refusal(sweep: Sweep, refused: Sequence[Refused], command: str) -> dict[str, Any]:
    """What is written of a sweep with jobs that cannot run: which, and why."""
    jobs = [Job(r.overrides, {}) for r in refused]
    factors = {f: list(dict.fromkeys(job_value(j, f) for j in jobs)) for f in sweep.factors}
    return {
        "command": command,
        "study": None,
        "output_dir": None,
        "design": None,
        "factors": factors,
        "baseline": {},
        "seeds": [],
        "jobs": [],
        "arms": [],
        "seeds_can_show": None,
        "cost": None,
        "done": [],
        "notes": [],
        "refused": [{"overrides": list(r.overrides), "error": r.error} for r in refused],
    }


def plan(
    sweep: Sweep,
    jobs: Sequence[Checked],
    *,
    command: str,
    effect: float,
    correlation: float,
    workers: int | None,
    metrics: Sequence[str] = (METRIC,),
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan of a sweep, as above; nothing is written.

    Args:
        sweep: what the command expands to.
        jobs: its jobs, which have passed every check.
        command: for the record.
        effect: in standard deviations of a run over seeds.
        correlation: between the runs of one seed.
        workers: jobs at once; None where the launcher does not say.
        metrics: that arms would be compared in.
        by: factors within whose levels arms would be compared.

    Raises:
        ConfigError: the baseline is not swept, or a factor of `by`.
    """
    first = jobs[0].run
    arms = members(sweep, first.tracking.baseline)
    baseline = next((m.factors for m in arms if m.baseline), {})
    listed = _jobs(jobs, arms)
    shown = _arms(listed, baseline)
    return {
        "command": command,
        "study": first.study,
        "output_dir": first.output_dir,
        "design": {
            "name": first.design.name,
            "settings": {k: getattr(first.design, k) for k in settings_of(type(first.design))},
            "about": sweep.about,
        },
        "factors": {f: list(dict.fromkeys(m.factors[f] for m in arms)) for f in arms[0].factors},
        "baseline": baseline,
        "seeds": list(dict.fromkeys(m.seed for m in arms)),
        "jobs": listed,
        "arms": shown,
        "seeds_can_show": _seeds(shown, baseline, effect, correlation, metrics, by),
        "cost": _cost(jobs, listed, workers),
        "done": [j["job_id"] for j in listed if j["state"] == "done"],
        "notes": [*notes([j.run for j in jobs], sweep.factors), *same_runs(arms)],
        "refused": [],
    }


def _jobs(jobs: Sequence[Checked], arms: Sequence[Member]) -> list[dict[str, Any]]:
    folder = Path(jobs[0].run.output_dir)
    past = past_runs(folder, {shape_of(j.run.raw) for j in jobs})
    found: dict[tuple[str, str], dict[str, Any]] = {}  # a value given twice is one job
    for job, member in zip(jobs, arms, strict=True):
        guess = estimate(job.run, job.held_out, past)
        state = job_state(RunFolder(folder / job.run.study / member.job_id), vars(member)).state
        found[member.job_id, member.arm] = {
            **{k: v for k, v in vars(member).items() if k != "steps"},
            "state": state,
            "steps": job.run.steps,
            "tokens_at_most": most_tokens(job.run),
            "estimate": None if guess is None else asdict(guess),
        }
    return list(found.values())


def _arms(jobs: Sequence[Mapping[str, Any]], baseline: Mapping[str, str]) -> list[dict[str, Any]]:
    """The arms in the order in which they run."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for job in jobs:
        groups.setdefault(job["arm"], []).append(job)
    return [
        {
            "arm": arm,
            "baseline": own[0]["baseline"],
            "changes": {
                key: {"from": baseline[key], "to": value}
                for key, value in own[0]["factors"].items()
                if key in baseline and value != baseline[key]
            },
            "seeds": [job["seed"] for job in own],
            "states": _counted(own),
        }
        for arm, own in groups.items()
    ]


def _counted(jobs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(job["state"] for job in jobs)
    return {state: counts[state] for state in STATES if counts[state]}


def _cost(
    jobs: Sequence[Checked], listed: Sequence[Mapping[str, Any]], workers: int | None
) -> dict[str, Any]:
    """Of the jobs that the command would still run; one that stands in two arms runs once."""
    retried = jobs[0].run.retry == "failed"
    settled = {"done"} if retried else {"done", "failed"}
    left = {job["job_id"]: job for job in listed if job["state"] not in settled}
    known = [Estimate(**job["estimate"]) for job in left.values() if job["estimate"]]
    sizes = [e.bytes for e in known if e.bytes is not None]
    seconds = sum(e.seconds for e in known)
    at_once = min(workers or 1, max(1, len(left)))
    return {
        "jobs": len(left),
        "jobs_with_estimate": len(known),
        "past_runs": max((e.past_runs for e in known), default=0),
        "tokens": sum(e.tokens for e in known) if known else None,
        "tokens_at_most": sum(job["tokens_at_most"] for job in left.values()),
        "seconds": seconds if known else None,
        "workers": workers,
        "wall_seconds": seconds / at_once if known else None,
        "bytes": sum(sizes) if sizes else None,
    }


def same_runs(arms: Sequence[Member]) -> list[str]:
    """A sentence for each pair of arms that are one and the same configuration."""
    first: dict[str, str] = {}
    found: dict[str, None] = {}
    for member in arms:
        other = first.setdefault(member.job_id, member.arm)
        if other != member.arm:
            found[f"{other} and {member.arm}: the same configuration, which runs once."] = None
    return list(found)


# -- what the seeds can show -----------------------------------------------------------------------


def _seeds(
    arms: Sequence[Mapping[str, Any]],
    baseline: Mapping[str, str],
    effect: float,
    correlation: float,
    metrics: Sequence[str],
    by: Sequence[str],
) -> dict[str, Any] | None:
    """Of the comparison with the fewest paired seeds, after Holm over the whole family."""
    from grpolab.results.power import seeds

    against = _against(arms, baseline, by)
    own = {arm["arm"]: set(arm["seeds"]) for arm in arms}
    n = min((len(own[arm] & own[other]) for arm, other in against.items()), default=0)
    if not n:
        return None
    found = seeds(n, len(against) * len(metrics), effect, correlation)
    return {
        **asdict(found),
        "family": {"metrics": list(metrics), "by": list(by), "against": against},
        "sentences": [family_sentence(against, metrics, by), *sentences(found)],
    }


def _against(
    arms: Sequence[Mapping[str, Any]], baseline: Mapping[str, str], by: Sequence[str]
) -> dict[str, str]:
    """{arm: the arm that the analysis compares it with}."""
    from grpolab.results.family import opponents
    from grpolab.results.frames import ResultsError

    changes = {arm["arm"]: {k: c["to"] for k, c in arm["changes"].items()} for arm in arms}
    base = next((arm["arm"] for arm in arms if arm["baseline"]), None)
    if base is None:
        return {}
    try:
        return opponents({arm: {**baseline, **own} for arm, own in changes.items()}, base, by)
    except ResultsError as error:
        raise ConfigError(f"plan.{error}.") from error


def family_sentence(against: Mapping[str, str], metrics: Sequence[str], by: Sequence[str]) -> str:
    """Which comparisons are corrected for together, and what `grpolab analyze` is to be given."""
    what = f"{len(against)} arm{'s' * (len(against) > 1)} against the baseline"
    what += f"'s choice at the same level of {', '.join(by)}" if by else ""
    on = f"on {', '.join(metrics)}"
    count = len(against) * len(metrics)
    given = [f"metric=[{','.join(metrics)}]"] if list(metrics) != [METRIC] else []
    given += [f"by={','.join(by)}"] if by else []
    told = f" (grpolab analyze {' '.join(given)})" if given else ""
    return f"One family of {count} comparison{'s' * (count > 1)}: {what} {on}{told}."


def sentences(s: Seeds) -> list[str]:
    """What seeds can show, in words."""
    many = s.comparisons > 1
    holm = f", {s.minimum_p_holm:.3g} after Holm over {s.comparisons} comparisons" if many else ""
    verb = "can" if s.minimum_p_holm < s.alpha else "can never"
    needs = "" if s.minimum_p_holm < s.alpha else f"; that needs {s.n_for_minimum_p}"
    flip = (
        f"{s.n} paired seed{'s' * (s.n > 1)} {verb} reach p < {s.alpha:g} by the exact sign-flip "
        f"test: its smallest p is {s.minimum_p:.3g}{holm}{needs}."
    )
    about = f"an effect of {s.effect:g} sd (correlation of paired seeds {s.correlation:g})"
    if s.power is None or s.power_holm is None:
        power = f"One seed has no spread to compare {about} with."
    else:
        holm = f", {s.power_holm:.0%} after Holm" if many else ""
        power = f"The paired t test finds {about} with a power of {s.power:.0%}{holm}."
    after = f", after Holm {_number(s.n_for_power_holm)}" if many else ""
    return [flip, power, f"A power of 80% needs {_number(s.n_for_power)} seeds{after}."]


def _number(n: int | None) -> str:
    return "more than 10,000" if n is None else str(n)
