"""A sweep's jobs as tags of its MLflow run, so that a store alone knows what the sweep planned.

A store has runs of the jobs that were started by the sweep. One that never started, or that an
earlier sweep of the study had finished, is known from this list. It is JSON in parts, since stores
limit a tag's length: `grpolab.jobs` says how many, `grpolab.jobs.0` and so on hold them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

COUNT = "grpolab.jobs"
CREATED = "grpolab.created"
LONGEST = 4900  # characters of a part; every store takes 5,000
OWN, REUSED = "own", "reused"


@dataclass(frozen=True)
class ListedJob:
    """A job as its sweep's manifest has it."""

    job_id: str
    arm: str
    baseline: bool
    seed: int
    factors: dict[str, str | None]
    reused: bool
    """Whether it had been finished, for another sweep, before this sweep began."""


@dataclass(frozen=True)
class Listing:
    """What a sweep consists of."""

    created: str
    """When the sweep was asked for, the last time: an ISO 8601 date with its zone."""
    factors: tuple[str, ...]
    jobs: tuple[ListedJob, ...]


def listing_tags(manifest: Mapping[str, Any], reused: Collection[str] = ()) -> dict[str, str]:
    """The tags that say what a manifest says.

    Args:
        manifest: with `created`, `factors` and `jobs`, as `grpolab.sweep.manifest` writes it.
        reused: the job ids that were done before.
    """
    arms: dict[str, Any] = {}
    jobs = []
    for job in manifest["jobs"]:
        arms.setdefault(job["arm"], [job["arm"], job["baseline"], job.get("factors", {})])
        state = REUSED if job["job_id"] in reused else OWN
        jobs.append([job["job_id"], list(arms).index(job["arm"]), job["seed"], state])
    content = {"factors": manifest["factors"], "arms": list(arms.values()), "jobs": jobs}
    text = json.dumps(content, separators=(",", ":"), default=str)
    parts = [text[at : at + LONGEST] for at in range(0, len(text), LONGEST)]
    tags = {f"{COUNT}.{i}": part for i, part in enumerate(parts)}
    return {CREATED: str(manifest["created"]), **tags, COUNT: str(len(parts))}


def listing_of(tags: Mapping[str, str]) -> Listing | None:
    """What the tags of a sweep's run say; None where there is no list, or not the whole of it."""
    try:
        text = "".join(tags[f"{COUNT}.{i}"] for i in range(int(tags[COUNT])))
        content = json.loads(text)
        arms = content["arms"]
        jobs = [
            ListedJob(
                str(job), str(arms[at][0]), bool(arms[at][1]), int(seed), dict(arms[at][2]),
                state == REUSED,
            )
            for job, at, seed, state in content["jobs"]
        ]  # fmt: skip
        return Listing(tags.get(CREATED, ""), tuple(map(str, content["factors"])), tuple(jobs))
    except (KeyError, ValueError, TypeError, IndexError):
        return None
