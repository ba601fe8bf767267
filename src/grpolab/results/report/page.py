"""The report of a sweep as one HTML file: everything in it is inline, and nothing is asked for."""

from __future__ import annotations

import base64
import hashlib
import math
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from grpolab.results import figures as drawing
from grpolab.results import style
from grpolab.results.analyze import AnalyzeOutput, default_out
from grpolab.results.frames import Results
from grpolab.results.load import load
from grpolab.results.metrics import spoken
from grpolab.results.report import content
from grpolab.results.summary import arm_table, check_metric, check_one_study, run_values
from grpolab.results.verdicts import Rules, in_words, verdicts
from grpolab.results.visible import visible
from grpolab.tracking.folder import write_atomically

HEADINGS = {
    "holds": "Differences that hold",
    "out": "Ruled out: equivalent within the margin",
    "more": "Undecided: what is ruled out, and how many seeds are needed",
}
_KIND = {"better": "holds", "worse": "holds", "equivalent": "out"}


class Picture(NamedTuple):
    """A figure as data URIs, for light and dark pages."""

    name: str
    light: str
    dark: str
    caption: str


def written(
    *,
    output_dir: str | Path = "outputs",
    sweep: str | None = None,
    study: str | None = None,
    uri: str | None = None,
    out: str | Path | None = None,
    metric: str = "eval/accuracy",
    equivalence: float | str | None = None,
    figures: str = "all",
    where: str | None = None,
    kept: str | Path | None = None,
) -> tuple[Path, Results]:
    """Write the page; its path, and what it is about.

    Default: `<output_dir>/analysis/<sweep or study>/report.html`.

    `out` is the file (.html) or a folder for report.html. Configs, samples and provenance come
    from the run folders under `output_dir`; where they lie elsewhere the page says so. Raises
    ResultsError, with nothing written, where the runs, the metric or a figure do not exist.
    """
    margin = Rules.of(equivalence=equivalence).equivalence
    drawing.chosen(figures)
    results = load(output_dir=output_dir, sweep=sweep, study=study, uri=uri, where=where, kept=kept)
    check_one_study(results)
    check_metric(results, metric)
    judged = verdicts(results, metric, margin)
    source = drawing.Source(results, metric, judged)
    page = render(source, *drawing.draw(source, figures), Path(output_dir))
    path = Path(out) if out is not None else default_out(output_dir, results, sweep, study, where)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path, results


def report(**given: Any) -> Path:
    """Write the page; its path. See `written` for what may be given."""
    return written(**given)[0]


def page_of(made: AnalyzeOutput, output_dir: str | Path) -> Path:
    """The page of an analysis, with its figures, beside its files; its path."""
    page = render(made.source, made.drawn, made.left_out, Path(output_dir))
    write_atomically(made.out / "report.html", page)
    return made.out / "report.html"


def render(
    source: drawing.Source,
    drawn: dict[str, drawing.Drawn],
    left_out: dict[str, str],
    output_dir: Path,
) -> str:
    """The page's text, ready for UTF-8. Whatever a model, a user or an error wrote is escaped."""
    results, metric = source.results, source.metric
    judged = source.verdicts[source.verdicts["metric"] == metric]
    judged.attrs = source.verdicts.attrs
    places = content.folders(output_dir, results.runs)
    runs = run_values(results, metric)
    text = _template().render(
        study=str(results.runs["study"].iloc[0]),
        sweeps=sorted({str(s) for s in results.runs["sweep"].dropna()}),
        metric=metric,
        states=results.runs["status"].value_counts().sort_index().to_dict(),
        headings=HEADINGS,
        words=_words(judged),
        arms=_arm_rows(arm_table(results, metric), judged),
        pictures=_pictures(drawn),
        left_out=left_out,
        differences=content.config_differences(results, places),
        samples=content.samples(results, places),
        arm_names=content.arms(results),
        crashes=runs[runs["status"] != "done"].to_dict("records"),
        runs=runs.to_dict("records"),
        provenance=content.provenance(output_dir, results, places),
        has_folders=bool(places),
        script=_asset("sort.js"),
        script_hash=_sha256(_asset("sort.js")),
        style=_asset("style.css"),
    )
    return str(text)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )  # fmt: skip
    environment.filters |= {"number": number, "asset": Markup}
    return environment.from_string(_asset("page.html.j2"))


def _asset(name: str) -> str:
    return (resources.files("grpolab.results.report") / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def number(value: object, signed: bool = False) -> str:
    """To three decimals; a dash for none."""
    found = float(str(value)) if not pd.isna(value) else math.nan  # type: ignore[call-overload]
    if math.isnan(found):
        return "–"
    return f"{found:+.3f}" if signed else f"{found:.3f}"


def _words(judged: pd.DataFrame) -> dict[str, list[str]]:
    """{kind of finding: its sentences}."""
    found: dict[str, list[str]] = {kind: [] for kind in HEADINGS}
    for verdict, line in zip(judged["verdict"], in_words(judged), strict=True):
        found[_KIND.get(str(verdict), "more")].append(line)
    return found


def _arm_rows(table: pd.DataFrame, judged: pd.DataFrame) -> list[dict[Any, Any]]:
    """Each arm's final value with its difference from the baseline and the verdict on it."""
    said = judged.assign(
        verdict=[spoken(*v) for v in zip(judged.verdict, judged.metric, strict=True)]
    )
    found: Mapping[Any, Any] = {row["arm"]: row for row in said.to_dict("records")}
    none = {"delta": math.nan, "p_corrected": math.nan, "verdict": ""}
    return [
        {**row, **{key: found.get(row["arm"], none)[key] for key in none}}
        for row in table.to_dict("records")
    ]


def _pictures(drawn: dict[str, drawing.Drawn]) -> list[Picture]:
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, (figure, caption) in drawn.items():
            style.save(figure, folder, name, caption, dark=True, kinds=["svg"])
            light, dark = _data(folder / f"{name}.svg"), _data(folder / f"{name}.dark.svg")
            made.append(Picture(name, light, dark, caption.strip()))
    return made


def _data(path: Path) -> str:
    # an image of its own: ids and fonts of one figure never meet another's, and no script runs
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
