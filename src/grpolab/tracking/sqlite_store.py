"""Whether a sqlite file can be an MLflow store, before anything is written to it."""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

from grpolab.component import ConfigError


def check_sqlite(path: Path) -> None:
    """Refuses a file that is no database, or an MLflow store of another version.

    Raises:
        ConfigError: what it is instead.
    """
    if not path.exists():
        return
    problem = _problem(path)
    if problem:
        raise ConfigError(
            f"tracking.uri: {path} {problem}; allowed: an MLflow store of the installed version, "
            "or a new file."
        )


def _problem(path: Path) -> str | None:
    if not path.is_file():
        return "is a folder"
    if path.stat().st_size == 0:
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
            tables = {name for (name,) in store.execute("select name from sqlite_master")}
            if "alembic_version" not in tables:
                return None
            found = [name for (name,) in store.execute("select version_num from alembic_version")]
    except sqlite3.OperationalError as error:
        return None if "locked" in str(error) else f"cannot be read ({error})"
    except sqlite3.DatabaseError as error:
        return f"is no sqlite database ({error})"
    known = revisions()
    unknown = [name for name in found if known and name not in known]
    return f"is a store of version {unknown[0]!r}, which is not known here" if unknown else None


def revisions() -> set[str]:
    """The schema versions that the installed MLflow has migrations for; found without importing it,
    which takes seconds."""
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        return set()
    folder = Path(spec.origin).parent / "store" / "db_migrations" / "versions"
    return {path.stem.split("_")[0] for path in folder.glob("*.py")} - {""}
