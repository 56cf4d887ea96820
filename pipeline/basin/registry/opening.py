"""MLflow's client for the registry; whatever is wrong with MLflow ends in words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from basin.errors import Absent
from basin.tracking import client as mlflow_client
from basin.tracking import journal


@contextmanager
def opened(advice: str = "Everything is computed and kept; when MLflow is back, run `dvc repro register`.") -> Iterator[MlflowClient]:
    """The client. Raises Absent where MLflow cannot be used: a registration that failed quietly would count as done."""
    try:
        with mlflow_client.current() as store:
            yield store
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, RuntimeError) as error:
        where = journal.shown(journal.uri())
        raise Absent(f"registry: MLflow at {where} cannot be used (got {journal.cause(error)}). {advice}") from error


def aliases(store: MlflowClient, name: str) -> dict[str, int]:
    """alias -> version; empty where there is no such registered model."""
    try:
        return {key: int(version) for key, version in store.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
