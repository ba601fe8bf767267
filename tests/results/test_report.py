"""The page of a sweep: complete, harmless whatever models wrote, and alive in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grpolab.cli import main
from grpolab.cli.inspect import COMPARISON_KEYS
from grpolab.results.analyze import analyze
from grpolab.results.frames import ResultsError
from grpolab.results.load import load
from grpolab.results.metrics import decimals
from grpolab.results.report import content, report
from grpolab.results.report.findings import with_minus
from grpolab.results.words import in_words

if TYPE_CHECKING:  # the same file under the name the type checker knows it by
    from tests.results.synthetic_sweep import STUDY, Job, write_files
else:
    from synthetic_sweep import STUDY, Job, write_files

HOSTILE = (
    "</pre></script><script>window.pwned = 1; fetch('http://127.0.0.1:9/')</script>"
    "<img src=http://127.0.0.1:9/ onerror='window.pwned = 2'> {{ 7 * 7 }} &amp; "
    "\x00\x1b[31m\x85 \u202eevil\u202c שלום \u2028 \ud83d end"
)
REASON = "<b>loss</b> is not finite </td><script>window.pwned = 3</script>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three arms: one better, one undecided with a failure, one of 10 and 9 to sort."""
    root = tmp_path_factory.mktemp("report") / "outputs"
    finals = {"baseline": 0.4, "clip=cispo": 0.7, "clip=none": 0.395}
    jobs = [
        Job(arm, seed, final + 0.01 * (seed % 3) + 0.002 * seed * len(arm) % 0.013)
        for arm, final in finals.items()
        for seed in range(7)
    ]
    jobs[-1].state, jobs[-1].reason = "failed", REASON
    write_files(root, jobs, "first", "2026-01-01T10:00:00+00:00")
    for job in jobs:
        folder = root / "clipping" / job.job_id
        records = [_sample(step, n, job.arm) for step in (1, 25) for n in range(2)]
        lines = "".join(json.dumps(r) + "\n" for r in records)
        (folder / "samples.jsonl").write_text(lines)
        note = {"command": "grpolab <train>", "git_sha": "abc", "packages": {"torch": "2"}}
        if job.seed:  # as of one version, and of the one before
            note |= {"device": "cpu", "dtype": "float32" if job.seed < 3 else "bfloat16"}
        (folder / "provenance.json").write_text(json.dumps(note))
        tune(folder, [100, 101] if job.arm == "clip=none" else [])
    return root


def tune(folder: Path, seeds: object) -> None:
    """Has a search tuned the run's configuration on these seeds."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tuned_on": seeds}))


def _sample(step: int, number: int, arm: str) -> dict[str, Any]:
    text = HOSTILE if number else f"{arm} says {step}"
    return {"step": step, "prompt": f"What is {number} < {step}?", "completion": text,
            "reward": 0.25, "truncated": False}  # fmt: skip


@pytest.fixture(scope="module")
def page(out: Path) -> Path:
    return report(output_dir=out, sweep="latest", figures="usual")


class Page(HTMLParser):
    """The tags, the links, and the text, its pieces apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.links += [v or "" for k, v in attrs if k in ("src", "srcset", "href", "action")]
        assert not [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_promised_is_on_the_page(page: Path, out: Path) -> None:
    assert page == out / "analysis" / "first" / "report.html"
    text = Page(page.read_text("utf-8")).text
    found = " ".join(text.split())
    assert "Sweep first · eval/accuracy · 20 done, 1 failed" in found
    holds, rest = found.split("Undecided: what is ruled out")
    assert "clip=cispo against baseline on eval/accuracy: better holds" in holds
    assert "clip=none against baseline on eval/accuracy: undecided" in rest
    assert re.search(r"is ruled out; needs (about|more than) [\d,]+ seeds", rest)
    assert f"clip=none 6 failed 25 {REASON} clip-none-6" in found
    assert "clip.name ppo cispo" in found  # from config.yaml
    assert "grpolab <train>" not in found  # the sweep's own command comes first
    assert "grpolab train -m clip=ppo,none" in found
    assert "git_sha abc" in found
    assert "torch 2" in found
    assert "device cpu dtype float32; bfloat16" in found
    tuned = "clip=none was tuned by a search on seeds 100, 101, none of which is used here."
    assert found.count("was tuned") == found.count(tuned) == 1
    for step in (1, 25):
        assert f"Step {step}, seed 0 What is 0 < {step}? baseline · reward 0.250" in found
        assert f"clip=cispo says {step}" in found


def test_what_models_wrote_is_text_and_nothing_more(page: Path) -> None:
    raw = page.read_text("utf-8")
    read = Page(raw)
    assert read.tags.count("script") == 1
    assert {"b", "iframe", "object", "link"} & set(read.tags) == {"link"}
    assert read.links
    assert all(link.startswith("data:") for link in read.links)
    shown = (
        HOSTILE.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\x85", "\\x85")
        .replace("\u202e", "\\u202e").replace("\u202c", "\\u202c").replace("\u2028", "\\u2028")
        .replace("\ud83d", "\\ud83d")
    )  # fmt: skip
    assert read.text.count(shown) == 6  # two steps, three arms
    assert "{{ 7 * 7 }}" in raw
    assert html.escape(HOSTILE[:13]) in raw
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", raw)


def test_the_script_is_the_one_that_the_policy_allows(page: Path) -> None:
    raw = page.read_text("utf-8")
    script = raw.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(raw.split('http-equiv="Content-Security-Policy" content="')[1])
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                             f"script-src 'sha256-{digest}'\"")  # fmt: skip


def test_a_store_without_run_folders_says_what_is_missing(mlflow_uri: str, tmp_path: Path) -> None:
    found = report(
        uri=mlflow_uri, sweep="first", output_dir=tmp_path, out=tmp_path / "a.html",
        figures="final_comparison",
    )  # fmt: skip
    text = " ".join(Page(found.read_text("utf-8")).text.split())
    assert "The run folders are not here, and samples lie with them." in text
    assert "clip=cispo,kl=k3 key baseline arm clip ppo cispo kl none k3" in text


@pytest.mark.parametrize(
    ("tuned_on", "said"),
    [
        ({}, []),
        ({"baseline": None, "clip=none": "100", "clip=gspo": ["x"]}, []),  # of no use, no harm
        ({"baseline": [7], "clip=none": [7], "clip=gspo": [7]},
         ["Every arm was tuned by a search on seeds 7, none of which is used here."]),
        ({"baseline": [7], "clip=gspo": [7], "clip=none": [1, 9]},
         ["baseline, clip=gspo were tuned by a search on seeds 7, none of which is used here.",
          "clip=none was tuned by a search on seeds 1, 9."]),
    ],
)  # fmt: skip
def test_the_page_names_the_seeds_that_a_search_tuned_on(
    tuned_on: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    jobs = [
        Job(arm, seed, 0.5) for arm in ("baseline", "clip=gspo", "clip=none") for seed in (0, 1)
    ]
    write_files(tmp_path, jobs, "first", "2026-01-01T10:00:00+00:00")
    for job in jobs:
        if job.arm in tuned_on:
            tune(tmp_path / STUDY / job.job_id, tuned_on[job.arm])
    found = load(output_dir=tmp_path, sweep="first")
    assert content.tuned(found, content.folders(tmp_path, found.runs)) == said
    assert content.tuned(found, {}) == []


def test_damaged_files_cost_their_part_only(out: Path, tmp_path: Path) -> None:
    broken = tmp_path / "outputs"
    shutil.copytree(out, broken)
    for folder in (broken / "clipping").glob("clip-*"):
        (folder / "samples.jsonl").write_bytes(b"\xff\xfe nonsense\n[1]\n")
        (folder / "provenance.json").write_text("{")
        (folder / "config.yaml").write_text("a: [")
    text = Page(report(output_dir=broken, sweep="first", figures="forest").read_text("utf-8")).text
    assert "not logged" in text
    assert "baseline says 1" in text


def test_a_bad_request_writes_nothing(out: Path, tmp_path: Path) -> None:
    for wrong in ({"metric": "eval/acc"}, {"figures": "forrest"}, {"where": "seed.x > 1"}):
        with pytest.raises(ResultsError):
            report(output_dir=out, sweep="first", out=tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_the_command_prints_the_path_and_opens_only_when_asked(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    words = ["report", f"output_dir={out}", "figures=forest", f"out={tmp_path}"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "report.html")]
    assert opened == []
    assert main([*words, "open=true"]) == 0
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert main([*words, "oppen=true"]) == 2
    assert main([*words, "open=yes"]) == 2
    assert "did you mean open?" in capsys.readouterr().err


def test_long_completions_are_cut_and_the_first_of_a_prompt_counts(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    entries = [_sample(3, 0, "x"), _sample(3, 0, "y") | {"completion": "a" * 5000}]
    path.write_text("".join(json.dumps(e) + "\n" for e in [*entries, {**entries[1], "step": 4}]))
    found = content.by_step(path)
    assert found[3]["What is 0 < 3?"]["text"] == "x says 3"
    assert found[4]["What is 0 < 3?"]["text"] == "a" * 2000 + " …"


def test_metrics_and_levels_have_their_sections_and_tables(tmp_path: Path) -> None:
    finals = {"baseline": 0.3, "clip=none": 0.31, "kl=10": 0.6, "clip=none,kl=10": 0.5}
    finals |= {"kl=9": 0.4, "clip=none,kl=9": 0.42}
    jobs = [
        Job(arm, seed, final + 0.01 * (seed % 3) + 0.002 * seed * len(arm) % 0.013)
        for arm, final in finals.items()
        for seed in range(6)
    ]
    write_files(tmp_path, jobs, "s", "2026-01-01T10:00:00+00:00")
    given: dict[str, Any] = {
        "output_dir": tmp_path, "sweep": "s", "metric": "[eval/accuracy,eval/pass@8]", "by": "kl",
        "equivalence": 0.2, "figures": "[forest]",
    }  # fmt: skip
    page = Page(report(**given).read_text("utf-8"))
    text = " ".join(page.text.split())
    titles = [
        f"{metric} at kl={level}"
        for metric in ("eval/accuracy", "eval/pass@8")
        for level in ("none", "9", "10")
    ]
    assert all(text.count(title) == 1 for title in titles)
    assert text.index("eval/accuracy at kl=9") < text.index("eval/accuracy at kl=10")
    assert text.index("eval/accuracy at kl=10") < text.index("eval/pass@8 at kl=9")
    # the sentences are analyze's: one family over metrics and levels
    made = analyze(**given, out=tmp_path / "a")
    assert len(made.verdicts) == 6
    for line in in_words(made.verdicts):
        assert " ".join(with_minus(line).split()) in text
    assert "p corrected by holm over 6 comparisons. α = 0.05. Equivalence margin ±0.2." in text
    assert "Compared within the levels of kl." in text
    row: Any = made.verdicts.set_index(["metric", "arm"]).loc[("eval/pass@8", "clip=none,kl=10")]
    cells = f"{decimals(row['delta'], signed=True)} [{decimals(row['low'], signed=True)}, "
    assert with_minus(cells) in text
    assert f"{row['verdict']} kl=10" in text  # against what
    assert (
        len(re.findall(r'id="figure-forest', (tmp_path / "analysis/s/report.html").read_text()))
        == 2
    )


def test_the_command_takes_the_rules_of_analyze(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", f"output_dir={out}", "figures=forest", f"out={tmp_path}"]
    assert main([*words, "correction=bonferroni", "test=sign_flip", "alpha=.1"]) == 0
    text = " ".join(Page((tmp_path / "report.html").read_text("utf-8")).text.split())
    assert "Test: sign-flip; p corrected by bonferroni over 2 comparisons. α = 0.1." in text
    assert main([*words, "by=klip"]) == 2
    assert "by=klip: no such swept factor" in capsys.readouterr().err
    assert main(["report", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {key} " in said for key in COMPARISON_KEYS)


def test_a_true_minus_for_numbers_and_settings_as_they_are() -> None:
    assert (
        with_minus("[-0.1, -.5] clip.low=-1 lr=1e-4 a-1") == "[−0.1, −.5] clip.low=-1 lr=1e-4 a-1"
    )
    assert decimals(-0.0003, signed=True) == "+0.000"
    assert (decimals(None), decimals(float("nan")), decimals(-1.5)) == ("–", "–", "-1.500")


# -- in a browser ----------------------------------------------------------------------------------

PROBE = """
const finals = () => [...document.querySelectorAll("#arm-table tbody tr")]
  .map((row) => row.cells[0].textContent + " " + row.cells[3].textContent.trim());
const click = (n) => document.querySelectorAll("#arm-table th button")[n].click();
const found = {before: finals()};
click(3); found.up = finals(); click(3); found.down = finals(); click(7); found.p = finals();
found.sort = document.querySelectorAll("#arm-table th")[7].getAttribute("aria-sort");
addEventListener("load", () => {
  found.pictures = [...document.images].map((image) => image.complete && image.naturalWidth > 0);
  found.requests = performance.getEntriesByType("resource").map((e) => e.name)
    .filter((name) => !name.startsWith("data:"));
  found.narrowest = Math.min(...[...document.images].map((image) => image.width));
  found.pwned = window.pwned ?? null;
  found.width = innerWidth;
  found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.background = getComputedStyle(document.body).backgroundColor;
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});
"""


def probed(page: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """What a probe sees that the page's policy is told to let run beside the page's own script."""
    assert BROWSER is not None
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = page.read_text("utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    copy = folder / "probed.html"
    copy.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), "utf-8")
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-background-networking", "--no-first-run", f"--user-data-dir={folder / 'user'}",
         "--virtual-time-budget=5000", *flags, "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(
        html.unescape(done.stdout.split("FOUND")[-1].split("END")[0])
    )
    return found


@pytest.mark.skipif(BROWSER is None, reason="no chromium here (apt-get install chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_chromium(page: Path, tmp_path: Path, width: int) -> None:
    found = probed(page, tmp_path, f"--window-size={width},900")
    assert [entry.split()[0] for entry in found["before"]] == [
        "baseline",
        "clip=cispo",
        "clip=none",
    ]
    up = [float(entry.split()[1]) for entry in found["up"]]
    assert up == sorted(up)
    assert len(set(up)) == 3
    assert found["down"] == found["up"][::-1]
    # what has no p, the baseline, stays last
    by_p = [entry.split()[0] for entry in found["p"]]
    assert (by_p[0], by_p[-1]) == ("clip=cispo", "baseline")
    assert found["sort"] == "ascending"
    assert found["pictures"] == [True, True, True]
    assert found["requests"] == []
    assert found["pwned"] is None
    assert found["overflow"] <= 0
    assert found["narrowest"] >= 300  # also on a phone: as wide as on paper, or the text is gone
    assert found["background"] == "rgb(255, 255, 255)"
    assert abs(found["width"] - width) <= 120  # a window has a least width


@pytest.mark.skipif(BROWSER is None, reason="no chromium here (apt-get install chromium)")
def test_in_chromium_at_night(page: Path, tmp_path: Path) -> None:
    found = probed(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert found["background"] == "rgb(18, 18, 18)"
    assert found["pictures"] == [True, True, True]
