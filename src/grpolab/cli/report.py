"""`grpolab report`: one self-contained HTML page of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from grpolab.cli.inspect import COMPARISON_KEYS
from grpolab.component import ConfigError

KEYS = COMPARISON_KEYS | {
    "out": "the file, or a folder for report.html (<output_dir>/analysis/<sweep>)",
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
