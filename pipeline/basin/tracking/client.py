"""The one place that opens MLflow: its client, its local database, the experiment of a data set."""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from basin import environment, files
from basin.tracking import lease
from basin.tracking.journal import SQLITE, uri

ARTIFACTS = "mlartifacts"
PLACES = {  # where MLflow's tables keep absolute places of files
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; a server that accepts and never answers would otherwise hold a call for two minutes
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
BASIN, MIGRATING, REGISTERING = 20270, 1, 2  # numbers that PostgreSQL's locks have for names
CUSTOM_MODELS = {"mlflow.experimentKind": "custom_model_development"}  # else the UI takes the experiment for one of chat traces


def client() -> MlflowClient:
    """MLflow's client on `uri()`. A local database that is not there yet is made first.

    Raises whatever MLflow, SQLite or the network have to say.
    """
    environment.apply()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for noisy in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if database := local_database():
        _prepare(database)
    elif is_shared_database(uri()):
        _prepare_shared(uri())
    return MlflowClient(uri())


@contextmanager
def current() -> Iterator[MlflowClient]:
    """The same for MLflow's module-level calls, which MLflow tells of it by an environment variable; that is put back."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    store = client()
    mlflow.set_tracking_uri(uri())
    try:
        yield store
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def local_database() -> Path | None:
    """The SQLite file, or None where MLflow is a server or another database."""
    return Path(uri().removeprefix(SQLITE)) if uri().startswith(SQLITE) else None


def is_shared() -> bool:
    """Whether other checkouts may write there too: everywhere but in the database that lies in this one."""
    database = local_database()
    return database is None or database.parent.resolve() != files.checkout().resolve()


def is_shared_database(where: str) -> bool:
    return where.startswith("postgresql")


@contextmanager
def alone(purpose: int = REGISTERING) -> Iterator[None]:
    """Keep others from the same purpose: with a lock of PostgreSQL's, one beside a local database, or one that a server holds."""
    if is_shared_database(uri()):
        engine = sqlalchemy.create_engine(uri(), poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as held:
            held.execute(sqlalchemy.text("SELECT pg_advisory_lock(:basin, :purpose)"), {"basin": BASIN, "purpose": purpose})
            yield
    elif not (database := local_database()):
        with lease.held(MlflowClient(uri())):
            yield
    else:
        lock = database.parent / ".basin" / f"mlflow.{purpose}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w", encoding="utf-8") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield


@cache
def _prepare_shared(where: str) -> None:
    """Make the tables where there are none. MLflow's own first use by several processes at once breaks them."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with alone(MIGRATING):
        SqlAlchemyStore(where, artifact_root()).engine.dispose()


def artifact_root() -> str:
    """Where files go when the tracking URI is a database, which has no place for them."""
    return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or Path(ARTIFACTS).absolute().as_uri()


def _prepare(database: Path) -> None:
    """Make a new database beside its place and move it there whole.

    MLflow's own first use runs its migrations in place: several processes at once, or a kill half-way, break the file for good.
    """
    with alone(MIGRATING):
        if not database.exists() or not database.stat().st_size:
            from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            new = database.parent / ".basin" / "mlflow.db.new"
            new.unlink(missing_ok=True)
            SqlAlchemyStore(f"{SQLITE}{new}", (database.parent / ARTIFACTS).as_uri()).engine.dispose()
            new.replace(database)
            for kept in (SqlAlchemyStore._engine_map, RegistryStore._engine_map):
                if uri() in kept:
                    kept[uri()].dispose()  # connections of this process to a database that was deleted
    with closing(sqlite3.connect(database, timeout=5)) as found:
        found.execute("SELECT count(*) FROM sqlite_master").fetchone()  # a damaged file fails here at once; MLflow tries for 100 s
        _settle(found, database.parent / ARTIFACTS)


def _settle(database: sqlite3.Connection, home: Path) -> None:
    """Point the places of files at the folder beside the database: a copied or moved checkout owns its copies, not the original's."""
    real = home.resolve()

    @cache
    def elsewhere(root: str) -> bool:
        return Path(root, ARTIFACTS).resolve() != real

    def here(place: str | None) -> str | None:
        root, found, below = (place or "").rpartition(f"/{ARTIFACTS}/")
        url = urlparse(root)
        return f"{home.as_uri()}/{below}" if found and url.scheme in ("", "file") and elsewhere(unquote(url.path)) else place

    database.create_function("here", 1, here, deterministic=True)
    for table, column in PLACES.items():
        if database.execute(f"SELECT 1 FROM {table} WHERE here({column}) != {column} LIMIT 1").fetchone():
            with database:
                database.execute(f"UPDATE {table} SET {column} = here({column}) WHERE here({column}) != {column}")


def is_own(folder: Path) -> bool:
    """Whether files there are those of the local database: what is elsewhere is another's, and never deleted."""
    database = local_database()
    return database is not None and folder.resolve().is_relative_to((database.parent / ARTIFACTS).resolve())


def experiment_id(store: MlflowClient, name: str) -> str:
    """The experiment of a data set, made where it is missing."""
    try:
        found: Experiment | None = store.get_experiment_by_name(name) or _create(store, name)
    except MlflowException as error:  # another stage was first
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        found = store.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(f"experiment '{name}' was deleted; bring it back: mlflow experiments restore -x {found.experiment_id}")
    return found.experiment_id


def page(base: str, name: str) -> str:
    """Where MLflow's pages below `base` list the runs of an experiment. They open as pages of chat traces, whatever the experiment's kind,
    unless the address says otherwise."""
    found = client().get_experiment_by_name(name)
    return f"{base}/#/experiments/{found.experiment_id}/runs?workflowType=machine_learning" if found else base


def _create(store: MlflowClient, name: str) -> Experiment:
    database = local_database()
    folder = (database.parent / ARTIFACTS / name).as_uri() if database else None
    if is_shared_database(uri()):
        folder = f"{artifact_root()}/{name}"
    return store.get_experiment(store.create_experiment(name, folder, CUSTOM_MODELS))
