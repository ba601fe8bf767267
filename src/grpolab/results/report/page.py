"""The report of a sweep as one HTML file: everything in it is inline, and nothing is asked for."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from grpolab.results import figures as drawing
from grpolab.results import style
from grpolab.results.analyze import AnalyzeOutput, compared, default_out
from grpolab.results.frames import Results
from grpolab.results.metrics import decimals
from grpolab.results.report import content, findings
from grpolab.results.summary import run_values
from grpolab.results.tables import p_value
from grpolab.results.visible import visible
from grpolab.tracking.folder import write_atomically


class Picture(NamedTuple):
    """A figure as data URIs, for light and dark pages."""

    name: str
    light: str
    dark: str
    caption: str
    width: int
    """In CSS pixels, a quarter wider than on paper."""
    least: int
    """On paper: a phone scrolls it, since the numbers of a smaller one could not be read."""


def written(
    *, out: str | Path | None = None, figures: str | Sequence[str] = "all", **given: Any
) -> tuple[Path, Results]:
    """Write the page; its path, and what it is about.

    Default: `<output_dir>/analysis/<sweep or study>/report.html`.

    `out` is the file (.html) or a folder for report.html; what else may be given is what `compared`
    takes. Configs, samples and provenance come from the run folders under `output_dir`; where they
    lie elsewhere the page says so. Raises ResultsError, with nothing written, where the runs, the
    metric or a figure do not exist.
    """
    source = compared(figures=figures, **given)
    output_dir = given.get("output_dir", "outputs")
    page = render(source, *drawing.draw(source, figures), Path(output_dir))
    named = (given.get(key) for key in ("sweep", "study", "where"))
    path = Path(out) if out is not None else default_out(output_dir, source.results, *named)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path, source.results


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
    results = source.results
    places = content.folders(output_dir, results.runs)
    runs = [run_values(results, metric) for metric in source.metrics]
    text = _template().render(
        study=str(results.runs["study"].iloc[0]),
        sweeps=sorted({str(s) for s in results.runs["sweep"].dropna()}),
        metrics=source.metrics,
        states=results.runs["status"].value_counts().sort_index().to_dict(),
        headings=findings.HEADINGS,
        sections=findings.sections(source),
        rules=findings.rules(source),
        tables=findings.arm_tables(source),
        pictures=_pictures(drawn),
        left_out=left_out,
        differences=content.config_differences(results, places),
        tuned=content.tuned(results, places),
        samples=content.samples(results, places),
        arm_names=content.arms(results),
        crashes=runs[0][runs[0]["status"] != "done"].to_dict("records"),
        runs=list(zip(*(values.to_dict("records") for values in runs), strict=True)),
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
    environment.filters |= {"number": _number, "p": p_value, "asset": Markup}
    return environment.from_string(_asset("page.html.j2"))


def _number(value: object, signed: bool = False) -> str:
    return findings.with_minus(decimals(value, signed=signed))


def _asset(name: str) -> str:
    return (resources.files("grpolab.results.report") / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pictures(drawn: dict[str, drawing.Drawn]) -> list[Picture]:
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, (figure, caption) in drawn.items():
            style.save(figure, folder, name, caption, dark=True, kinds=["svg"])
            light, dark = _data(folder / f"{name}.svg"), _data(folder / f"{name}.dark.svg")
            least = round(figure.get_figwidth() * 96)
            made.append(Picture(name, light, dark, caption.strip(), round(1.25 * least), least))
    return made


def _data(path: Path) -> str:
    # an image of its own: ids and fonts of one figure never meet another's, and no script runs
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
