"""`grpolab report`: one self-contained HTML page of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from grpolab.component import ConfigError

KEYS = {
    "sweep": "a sweep's id, or latest (the default)",
    "study": "all runs of a study instead of one sweep",
    "output_dir": "where the runs lie (outputs)",
    "uri": "read the runs from this MLflow store instead of the run folders",
    "out": "the file, or a folder for report.html (<output_dir>/analysis/<sweep>)",
    "metric": "what the comparison is about (eval/accuracy)",
    "equivalence": "differences below this count as none (not tested)",
    "figures": "names, usual, or all (the default)",
    "where": "only these runs: status == 'done' and factor.clip in ['ppo', 'cispo']",
    "open": "true: shows it in a browser (false)",
}


def report(arguments: Sequence[str]) -> int:
    """Writes the page and says where it is."""
    from grpolab.cli.inspect import key_values

    if any(a in ("-h", "--help") for a in arguments):
        print("usage: grpolab report [key=value …]\n")
        print("\n".join(f"  {k:<12}{v}" for k, v in KEYS.items()))
        return 0
    given = key_values(arguments, KEYS)
    shown = given.pop("open", "false")
    if shown not in ("true", "false"):
        raise ConfigError(f"open: {shown!r} given; allowed: true, false.")
    if "sweep" not in given and "study" not in given:
        given["sweep"] = "latest"
    margin = _margin(given.pop("equivalence", None))
    from grpolab.results.frames import ResultsError
    from grpolab.results.report import report as write

    try:
        path = write(**given, equivalence=margin)
    except ResultsError as error:
        raise ConfigError(str(error)) from error
    print(path)
    if shown == "true":
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
    return 0


def _margin(given: str | None) -> float | None:
    if given in (None, "null"):
        return None
    try:
        return float(str(given))
    except ValueError:
        raise ConfigError(f"equivalence: {given!r} given; allowed: a number above 0.") from None
