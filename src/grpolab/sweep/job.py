"""One job: claim its folder, train, log, export, and leave a STATUS that says how it ended."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError
from grpolab.config import Hardware, Run, bind_run, job_id
from grpolab.policy.policy import pick_device, pick_dtype
from grpolab.sweep.manifest import BASELINE, manifest_path, read_manifest, run_folder
from grpolab.sweep.preflight import Ready, check
from grpolab.sweep.progress import Progress
from grpolab.sweep.trackers import Trackers
from grpolab.tracking.disk import is_disk_full
from grpolab.tracking.folder import Busy, RunFolder
from grpolab.tracking.provenance import provenance
from grpolab.training import checkpoint
from grpolab.training.failures import RankFailed, RankLost, TrainingFailed
from grpolab.training.loop import Interrupted, Trainer
from grpolab.training.memory import is_out_of_memory
from grpolab.training.ranks import Ranks, joined


def run_job(raw: dict[str, Any]) -> str:
    """Runs one resolved configuration to its end: done, failed, busy, or pending (a full disk).

    A job that is done already is left alone; one that failed runs again, from its checkpoint if it
    has one. Ctrl-C raises KeyboardInterrupt after a checkpoint. Where torchrun has started several
    processes, all of them call this: the first one leads and writes.
    """
    run = bind_run(raw)
    folder = run_folder(raw)
    with joined(run.hardware.device) as ranks:
        if not ranks.first:
            return _follow(run, folder, ranks)
        try:
            return _lead(run, raw, folder, ranks)
        finally:
            ranks.last_word(folder.status()["state"])


GO = "go"
"""What the leading rank says once the run's folder is its own."""


def _follow(run: Run, folder: RunFolder, ranks: Ranks) -> str:
    """A rank that trains and writes nothing; the state that the leading rank has come to."""
    stopped = False
    try:
        with ranks.shared_fate():
            ready = check(run)
            word = ranks.gather(None)[0]
            if word != GO:
                return str(word)
            trainer = Trainer(run, ready.encoder, ready.examples, folder, ranks)
            trainer.fit(lambda step, metrics: None)
            stopped = trainer.stop_asked
            trainer.export()
    except Interrupted:
        stopped = True
    except Exception:  # the leading rank has been told, and says it in STATUS
        pass
    state = ranks.last_word() or "failed"
    if stopped:
        raise KeyboardInterrupt
    return state


def _lead(run: Run, raw: dict[str, Any], folder: RunFolder, ranks: Ranks) -> str:
    """The whole of a job: alone, or as the first of several ranks."""
    if folder.status()["state"] == "done":
        return "done"
    with ranks.shared_fate():
        ready = check(run)
    try:
        with folder.lease():
            return _train(run, raw, folder, ready, ranks)
    except Busy:
        return "busy"
    except Exception as error:
        if not is_disk_full(error):
            raise
        with suppress(OSError):  # else the lease grows stale, which says pending as well
            folder.set_status("pending", no_room(run.output_dir))
        return "pending"


def in_a_sentence(error: Exception, *, speaks: bool) -> str:
    """An error as STATUS has it: one line, and in words where memory ran out.

    Args:
        error: of the run.
        speaks: whether its text is meant to be read alone.
    """
    text = " ".join(str(error).split())
    if speaks:
        return text
    if is_out_of_memory(error):
        return (
            f"out of memory ({type(error).__name__}: {text[:300]}); a smaller prompts_per_step, "
            "sampler.max_new_tokens or hardware.memory_budget needs less"
        )
    return f"{type(error).__name__}: {text}"


def no_room(output_dir: str) -> str:
    """What is said of a full disk."""
    return (
        f"no space is left for {Path(output_dir).absolute()}; what was written before is intact, "
        "and once there is room the same command goes on"
    )


def _train(run: Run, raw: dict[str, Any], folder: RunFolder, ready: Ready, ranks: Ranks) -> str:
    identity = _identity(run, raw) | {"source": ready.examples.source}
    _describe(folder, raw, identity, run.hardware)
    trackers = Trackers(run, folder, raw, identity)
    try:
        with (
            ranks.shared_fate(),
            Progress(run, identity, enabled=run.tracking.progress) as progress,
        ):
            ranks.gather(GO)
            trainer = Trainer(run, ready.encoder, ready.examples, folder, ranks)
            trackers.backfill(up_to=_checkpoint_step(folder))

            def log(step: int, metrics: dict[str, float]) -> None:
                folder.append_metrics(step, metrics)
                trackers.log(step, metrics)
                progress.show(step, metrics)

            trainer.fit(log)
            trainer.export()
    except Interrupted:
        folder.set_status("pending", "interrupted; the same command goes on from the checkpoint")
        trackers.finish("KILLED")
        raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        folder.set_status("pending", "interrupted")
        trackers.finish("KILLED")
        raise
    except RankLost as error:  # as if this one had been killed
        folder.set_status("pending", f"{error}; the same command goes on from the checkpoint")
        trackers.finish("KILLED")
        return "pending"
    except ConfigError as error:
        folder.set_status("failed", str(error))
        trackers.finish("FAILED")
        raise
    except Exception as error:  # one broken arm must not end a sweep
        if is_disk_full(error):
            with suppress(OSError):
                trackers.finish("KILLED")
            raise
        known = isinstance(error, TrainingFailed)
        speaks = isinstance(error, (TrainingFailed, RankFailed))
        folder.set_status("failed", in_a_sentence(error, speaks=speaks))
        if known:
            checkpoint.remove(folder.path)  # it led here, and would again
        else:
            (folder.path / "traceback.txt").write_text(traceback.format_exc())
        trackers.finish("FAILED")
        return "failed"
    trackers.finish("FINISHED")
    folder.set_status("done")
    if not run.checkpoint.keep_on_done:
        checkpoint.remove(folder.path)
    if trainer.stop_asked:  # asked during the last step: this run is done, the sweep stops here
        raise KeyboardInterrupt
    return "done"


def _identity(run: Run, raw: dict[str, Any]) -> dict[str, Any]:
    """Who this run is in its sweep; alone it is the baseline of nothing else."""
    own = job_id(raw)
    identity: dict[str, Any] = {
        "study": run.study, "sweep": run.tracking.sweep, "job_id": own, "arm": BASELINE,
        "seed": run.seed, "baseline": True, "factors": {}, "parent_run_id": None,
        "steps": run.steps, "tuned_on": run.tracking.tuned_on,
    }  # fmt: skip
    if run.tracking.sweep is None:
        return identity
    manifest = read_manifest(manifest_path(run.output_dir, run.study, run.tracking.sweep))
    member = next((m for m in manifest["jobs"] if m["job_id"] == own), None)
    if member is not None:
        identity |= {k: member[k] for k in ("arm", "baseline", "factors")}
    return identity | {
        "parent_run_id": manifest["parent_run_id"],
        "command": manifest["command"],
    }


def _describe(
    folder: RunFolder, raw: dict[str, Any], identity: dict[str, Any], hardware: Hardware
) -> None:
    """Writes what the run is, before anything else can fail; device and dtype as they turned out
    where the settings say auto."""
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create(raw), folder.path / "config.yaml")
    folder.write_json("run.json", identity)
    device = pick_device(hardware.device)
    dtype = str(pick_dtype(hardware.dtype, device)).removeprefix("torch.")
    used = {"device": device.type, "dtype": dtype}
    folder.write_json("provenance.json", provenance(identity.get("command")) | used)


def _checkpoint_step(folder: RunFolder) -> int:
    import json

    found = checkpoint.find(folder.path)
    return json.loads((found / "state.json").read_text())["step"] if found else -1
