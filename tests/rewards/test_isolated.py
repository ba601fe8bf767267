"""Helper processes: killed when time is up, from any thread, and never confused."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grpolab.rewards.guard import TimeLimitExceeded
from grpolab.rewards.isolated import Helper, HelperFailed, Pool

LONG = 60.0  # seconds that no call here takes
SHORT = 0.2


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool("echo_helper", 1, LONG)
    yield made
    made.time_limit = LONG


def ask(pool: Pool, do: str, **more: Any) -> Any:
    return pool({"do": do, **more})


VALUES = [0.5, None, [1, "a"], "α\n∑ \ud800 \x00", {"x": True}, "x" * 10**6]


@pytest.mark.parametrize("value", VALUES)
def test_values_go_there_and_back(pool: Pool, value: Any) -> None:
    assert ask(pool, "echo", value=value) == value


def test_one_helper_answers_many(pool: Pool) -> None:
    assert [ask(pool, "count") for _ in range(3)] == [1, 2, 3]
    assert ask(pool, "process") != os.getpid()


def test_an_error_is_the_callers_and_the_helper_goes_on(pool: Pool) -> None:
    assert ask(pool, "count") == 1
    with pytest.raises(HelperFailed, match=r"^KeyError: 'gone'$"):
        ask(pool, "fail")
    assert ask(pool, "count") == 3


def test_what_the_helper_prints_is_no_answer(pool: Pool) -> None:
    assert ask(pool, "print") == "printed"
    assert ask(pool, "echo", value=1) == 1


@pytest.mark.parametrize("do", ["wait", "multiply"])
def test_the_time_limit_ends_any_call(pool: Pool, do: str) -> None:
    first = ask(pool, "process")
    pool.time_limit = SHORT
    with pytest.raises(TimeLimitExceeded, match=r"time limit of 0.2 s"):
        ask(pool, do)
    pool.time_limit = LONG
    killed = pool._idle.queue[0]
    assert isinstance(killed, Helper)
    if os.name == "posix":  # by its owner, not by itself some seconds later
        assert killed._process.returncode == -signal.SIGKILL
    assert ask(pool, "count") == 1  # a new one
    if os.name == "posix":
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


def test_the_time_limit_holds_in_threads() -> None:
    pool = Pool("echo_helper", 2, SHORT)

    def late() -> str:
        try:
            return str(ask(pool, "multiply"))
        except TimeLimitExceeded:
            return "late"

    with ThreadPoolExecutor(4) as threads:
        assert [f.result() for f in [threads.submit(late) for _ in range(4)]] == ["late"] * 4


def test_a_helper_that_ends_is_replaced(pool: Pool) -> None:
    with pytest.raises(HelperFailed, match="ended by itself"):
        ask(pool, "end")
    assert ask(pool, "count") == 1


def test_a_helper_killed_between_two_calls_is_replaced(pool: Pool) -> None:
    os.kill(ask(pool, "process"), signal.SIGTERM)
    assert any(answers(pool) for _ in range(100))


def answers(pool: Pool) -> bool:
    """The signal may arrive during the call."""
    try:
        return bool(ask(pool, "count") == 1)
    except HelperFailed:
        return False


def test_an_interrupted_call_leaves_no_answer_behind(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(pool, "echo", value="first") == "first"
    from grpolab.rewards import isolated

    def interrupt(self: isolated.Helper) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolated.Helper, "_read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(pool, "echo", value="stale")
    assert ask(pool, "echo", value="fresh") == "fresh"


def test_threads_share_helpers_and_get_their_own_answers() -> None:
    pool = Pool("echo_helper", 3, LONG)
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(ask, pool, "echo", value=i) for i in range(200)]
        assert [f.result() for f in futures] == list(range(200))
        helpers = {f.result() for f in [threads.submit(ask, pool, "process") for _ in range(50)]}
    assert 1 <= len(helpers) <= 3


def test_helpers_end_with_their_pool() -> None:
    pool = Pool("echo_helper", 1, LONG)
    helper = ask(pool, "process")
    del pool
    gc.collect()
    if os.name == "posix":
        with pytest.raises(ProcessLookupError):
            os.kill(helper, 0)


OWNER = """
import os, signal, subprocess, sys
from grpolab.rewards.isolated import Pool
pool = Pool("echo_helper", 1, 0.1)
print(pool({"do": "process"}), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "killed in a call":
    subprocess.Popen.kill = lambda helper: os.kill(os.getpid(), signal.SIGKILL)
    pool({"do": "multiply"})
"""


@pytest.mark.skipif(os.name != "posix", reason="looks at processes the POSIX way")
@pytest.mark.parametrize("end", ["done", "killed", "killed in a call"])
def test_helpers_end_with_the_program(end: str) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", OWNER, end], env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False, timeout=LONG,
    )  # fmt: skip
    # It returns once the helper, which holds the same standard error, has ended too.
    assert done.stderr == ""
    assert int(done.stdout) > 0


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_gets_helpers_of_its_own(pool: Pool) -> None:
    mine = ask(pool, "process")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.write(write, str(ask(pool, "process")).encode())
        finally:
            gc.collect()
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    theirs = int(os.read(read, 100))
    assert theirs != mine
    assert ask(pool, "process") == mine  # and the fork's end has not ended it


def test_a_helper_that_does_not_start() -> None:
    pool = Pool("no_such_helper", 1, LONG)
    for _ in range(2):
        with pytest.raises(HelperFailed, match="no_such_helper does not start"):
            pool.start()


def test_it_starts_outside_the_main_thread(pool: Pool) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(ask(pool, "echo", value=7)))
    thread.start()
    thread.join()
    assert results == [7]


@pytest.mark.skipif(os.name != "posix", reason="sends a signal the POSIX way")
def test_a_ctrl_c_is_not_for_the_helper(pool: Pool) -> None:
    os.kill(ask(pool, "process"), signal.SIGINT)
    assert ask(pool, "count") == 2
