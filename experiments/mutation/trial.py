"""Trying a mutant: a scratch copy, a forked child that runs pytest in it, and a verdict."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from experiments.mutation.mutants import Mutant
else:
    from mutants import Mutant

COPIED = ("src", "tests", "conf", "pyproject.toml")
WARM = (
    "torch", "numpy.polynomial.hermite_e", "hypothesis", "omegaconf", "pydantic", "hydra",
    "transformers", "trl.trainer.grpo_trainer",
)  # fmt: skip
"""What the tests import besides the package; imported once, before the forks."""
BASELINE_LIMIT = 3600.0  # seconds for all tests once, however busy the machine
REGISTRY = "tests/test_component.py"
"""Holds the settings' defaults against the YAML files; it calls no formula."""


@dataclass
class Verdict:
    """How a mutant fared."""

    state: str
    """killed, timed out or survived."""
    killed_by: str | None
    """The first test that failed."""
    seconds: float
    tests: int
    """Tests that could have noticed it."""


def warm_up() -> None:
    """Imports what every child needs, on one thread: a fork copies no other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in WARM:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # an extra that is not installed: its tests skip themselves
    import torch

    torch.set_num_threads(1)


# -- in the child ----------------------------------------------------------------------------------


class Chosen:
    """A pytest plugin: runs the tests in `order`, in that order; the first failure is noted."""

    def __init__(self, order: Sequence[str]) -> None:
        self.rank = {test: i for i, test in enumerate(order)}
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [i for i in items if i.nodeid in self.rank]
        items.sort(key=lambda i: self.rank[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = f"{report.nodeid} (collection)"


def first_failure(folder: Path, tests: Sequence[str]) -> str | None:
    """The first of the tests that fails; file by file, since collecting a file takes longer than
    most tests do."""
    for file in dict.fromkeys(file_of(test) for test in tests):
        chosen = Chosen(tests)
        code = run_pytest(folder, [file], chosen, "-x")
        if chosen.failed or code not in (0, 5):  # 5: no tests
            return chosen.failed or f"(pytest ended with {code})"
    return None


def file_of(test: str) -> str:
    """The file of a test's id."""
    return test.partition("::")[0]


class Watch:
    """A pytest plugin: which tests call which function of the package, how long each takes, and
    which fail. What is called while a file is collected or a fixture made counts for every test
    of the file: the value may be shared."""

    def __init__(self, package: Path) -> None:
        self.package = str(package) + os.sep
        self.seen: dict[CodeType, None] = {}
        self.calls: dict[str, dict[str, None]] = {}
        self.seconds: dict[str, float] = {}
        self.failing: list[str] = []

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.package):
            self.seen[frame.f_code] = None

    def _watched(self, caller: str) -> Iterator[None]:
        self.seen = {}
        sys.setprofile(self._profile)
        yield
        sys.setprofile(None)
        for code in self.seen:
            module = code.co_filename.removeprefix(self.package)
            place = f"{module}:{code.co_qualname.split('.<')[0]}"
            self.calls.setdefault(place, {})[caller] = None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        yield from self._watched(file_of(collector.nodeid))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        yield from self._watched(file_of(item.nodeid))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield from self._watched(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failing.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failing.append(report.nodeid)


def fork(folder: Path, work: Callable[[], dict[str, Any]]) -> int:
    """Runs `work` in a child whose package is the copy in `folder`; the child's process id. What
    it returns, or its traceback, lies in folder/answer.json afterwards."""
    (folder / "answer.json").unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        sys.path[0] = str(folder / "src")  # in place of this script's folder
        os.environ["PYTHONPATH"] = str(folder / "src")  # for tests that start processes
        answer = work()
        package = sys.modules.get("grpolab")
        if package is not None and not str(package.__file__).startswith(str(folder)):
            answer = {"error": f"imported {package.__file__} and not the copy"}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    (folder / "answer.json").write_text(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)


def wait(process: int, limit: float) -> bool:
    """Waits for a child so many seconds and no longer; whether it ended by itself."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def run_pytest(folder: Path, files: Sequence[str], plugin: Any, *flags: str) -> int:
    """pytest in this process."""
    words = ["-q", "-p", "no:cacheprovider", "--tb=short", "--rootdir", str(folder), *flags]
    return int(pytest.main([*words, *files], plugins=[plugin]))


# -- in the parent ---------------------------------------------------------------------------------


@dataclass
class Baseline:
    """The tests on the package as it is."""

    copy: Path
    calls: dict[str, list[str]]
    seconds: dict[str, float]
    failing: list[str]

    @classmethod
    def measure(cls, root: Path, scratch: Path, files: Sequence[str]) -> Baseline:
        """Copies the package and runs every test once, to see which functions it calls."""
        copy = scratch / "0"
        copy.mkdir()
        for name in COPIED:
            source = root / name
            if source.is_dir():
                skipped = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, copy / name, ignore=skipped)
            else:
                shutil.copy2(source, copy / name)

        def work() -> dict[str, Any]:
            watch = Watch(copy / "src" / "grpolab")
            code = run_pytest(copy, files, watch)
            calls = {place: list(callers) for place, callers in watch.calls.items()}
            found = {"calls": calls, "seconds": watch.seconds, "failing": watch.failing}
            return found if code in (0, 1, 2) else {"error": f"pytest ended with {code}"}

        wait(fork(copy, work), BASELINE_LIMIT)
        path = copy / "answer.json"
        answer = json.loads(path.read_text()) if path.exists() else {"error": "the tests hang"}
        if "error" in answer:
            sys.exit(f"{answer['error']}\n{(copy / 'output.txt').read_text()[-3000:]}")
        return cls(copy, **answer)

    def describe(self) -> str:
        """One line, and one for each test that fails without any mutation."""
        first = f"{len(self.seconds)} tests, {sum(self.seconds.values()):.0f} s without a mutation"
        return "\n".join([first, *(f"  left out, fails as it is: {t}" for t in self.failing)])

    def covering(self, mutant: Mutant, files: Sequence[str]) -> list[str]:
        """Tests that can notice a mutant: those that call its function, or a method of its class,
        or anything in the module where it lies in neither. File by file, the file first whose
        tests take least, and in it the quickest test; all tests in `files` where none calls it."""
        place = f"{mutant.module}:{mutant.function}"
        inside = f"{place}." if mutant.function else place
        callers = {c for f in self.calls if f == place or f.startswith(inside)
                   for c in self.calls[f]}  # fmt: skip
        if mutant.kind in ("default", "fact"):
            callers.add(REGISTRY)
        tests = [t for t in self._known(files) if t in callers or file_of(t) in callers]
        by_file: dict[str, list[str]] = {}
        for test in tests or self._known(files):
            by_file.setdefault(file_of(test), []).append(test)
        return [t for f in sorted(by_file, key=lambda f: self.time(by_file[f])) for t in by_file[f]]

    def _known(self, files: Sequence[str]) -> list[str]:
        """The tests of some files and folders that pass, quick ones first."""
        wanted = tuple(f if f.endswith(".py") else f"{f}/" for f in files)
        passing = self.seconds.keys() - set(self.failing)
        known = [t for t in passing if file_of(t).startswith(wanted)]
        return sorted(known, key=lambda t: (self.seconds[t], t))

    def time(self, tests: Sequence[str]) -> float:
        """Seconds that tests take."""
        return sum(self.seconds[t] for t in tests)


@dataclass
class Pool:
    """Copies of the package, one for each mutant tried at the same time."""

    baseline: Baseline
    scratch: Path
    jobs: int
    timeout: float

    def run(
        self, mutants: Sequence[Mutant], tests_of: Callable[[str], Sequence[str]]
    ) -> Iterator[tuple[Mutant, Verdict]]:
        """Tries every mutant; yields each as it ends."""
        # The compiled tests stay in the copies. Of the package nothing compiled may: a mutant of
        # the same size within the same second would be taken for the file it replaced.
        for compiled in (self.baseline.copy / "src").rglob("__pycache__"):
            shutil.rmtree(compiled)
        free = [self.baseline.copy]
        for job in range(1, self.jobs):
            free.append(shutil.copytree(self.baseline.copy, self.scratch / str(job)))
        sys.dont_write_bytecode = True
        waiting, running = list(mutants), dict[int, _Trial]()
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop(0)
                tests = self.baseline.covering(mutant, tests_of(mutant.module))
                trial = _Trial(mutant, free.pop(), tests, self.baseline.time(tests))
                running[trial.start()] = trial
            time.sleep(0.02)
            for process in list(running):
                ended, _ = os.waitpid(process, os.WNOHANG)
                trial = running[process]
                late = time.monotonic() - trial.began > trial.limit(self.timeout)
                if late and not ended:
                    os.killpg(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                if ended or late:
                    del running[process]
                    yield trial.mutant, trial.finish(timed_out=not ended)
                    free.append(trial.folder)


class _Trial:
    """One mutant in one copy."""

    def __init__(self, mutant: Mutant, folder: Path, tests: list[str], seconds: float) -> None:
        self.mutant, self.folder, self.tests, self.seconds = mutant, folder, tests, seconds
        self.path = folder / "src" / "grpolab" / mutant.module
        self.original = self.path.read_bytes()

    def limit(self, timeout: float) -> float:
        """Seconds after which it counts as hanging."""
        return timeout + 5 * self.seconds

    def start(self) -> int:
        """Writes the mutant and forks; the child's process id."""
        self.began = time.monotonic()
        self.path.write_bytes(self.mutant.apply(self.original))
        return fork(self.folder, lambda: {"failed": first_failure(self.folder, self.tests)})

    def finish(self, timed_out: bool) -> Verdict:
        self.path.write_bytes(self.original)
        seconds = round(time.monotonic() - self.began, 2)
        verdict = Verdict("timed out", None, seconds, len(self.tests))
        if not timed_out:
            path = self.folder / "answer.json"
            answer = json.loads(path.read_text()) if path.exists() else {"failed": "(crashed)"}
            if "error" in answer and "imported" in answer["error"]:
                sys.exit(answer["error"])
            verdict.killed_by = answer.get("failed") or answer.get("error")
            verdict.state = "killed" if verdict.killed_by else "survived"
        return verdict
