"""`grpolab report`: one self-contained HTML page of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from grpolab.component import ConfigError

KEYS = {
    "sweep": "a sweep's id, or latest (the default)",
    "study": "all runs of a study instead of one sweep",
    "output_dir": "where the runs lie (outputs)",
    "uri": "read the runs from this MLflow store instead of the run folders",
    "kept": "read from this folder of runs.parquet and history.parquet instead",
    "out": "the file, or a folder for report.html (<output_dir>/analysis/<sweep>)",
    "metric": "what the comparison is about (eval/accuracy)",
    "equivalence": "differences below this count as none (not tested)",
    "figures": "names, usual, or all (the default)",
    "where": "only these runs: status == 'done' and factor.clip in ['ppo', 'cispo']",
    "log": "false: the sweep's MLflow run does not get it as an artifact (true)",
    "open": "true: shows it in a browser (false)",
}


def report(arguments: Sequence[str]) -> int:
    """Writes the page and says where it is."""
    from grpolab.cli.inspect import log_files, of_results, to_be_logged
    from grpolab.cli.status import is_true

    given = of_results("report", "one HTML page of a sweep", arguments, KEYS)
    if given is None:
        return 0
    shown = is_true("open", given.pop("open", "false"))
    logged = to_be_logged(given)
    from grpolab.results.frames import ResultsError
    from grpolab.results.report.page import written

    try:
        path, results = written(**given)
    except ResultsError as error:
        raise ConfigError(str(error)) from error
    print(path)
    if logged:
        log_files({"report.html": path}, results.runs, given)
    if shown:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
    return 0
