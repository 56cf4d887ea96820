"""Who needs a version: a tag on it for each checkout that registered it or found it there.

Several checkouts may write to one MLflow, and a model of the same bytes is one version for all of them: `gc` of one leaves what has the tag
of another. Who is gone without `gc` leaves its tags; whoever knows it deletes them by hand.
"""

import platform
import uuid
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from basin import files
from basin.tracking import client as mlflow_client

TAG = "needed_by."
NAME = Path(".basin/checkout")  # this checkout's name, and where it was given


def own() -> dict[str, str]:
    """The tag of this checkout, with its place for people to read. In a database of its own it is `home`, in a copy of that as well."""
    if not mlflow_client.is_shared():
        return {f"{TAG}home": "the checkout of this database"}
    return {f"{TAG}{_name()}": f"{platform.node()}:{files.checkout().resolve()}"[-1000:]}


def claim(store: MlflowClient, name: str, version: int) -> None:
    """Set it."""
    for tag, place in own().items():
        store.set_model_version_tag(name, str(version), tag, place)


def others(version: ModelVersion) -> list[str]:
    """The places of the other checkouts that need a version."""
    return sorted(value for tag, value in version.tags.items() if tag.startswith(TAG) and tag not in own())


def is_ours(version: ModelVersion) -> bool:
    """Whether this checkout may give a version up: it has its tag or, in its own database, nobody's."""
    return own().keys() <= version.tags.keys() or not (mlflow_client.is_shared() or others(version))


def _name() -> str:
    """Drawn once; again where the folder is a copy, or on another machine: there it is a checkout of its own. A moved one keeps it."""
    place = files.checkout() / NAME
    place.parent.mkdir(parents=True, exist_ok=True)
    here = f"{place.parent.stat().st_ino} {platform.node()}"
    name, _, given = place.read_text(encoding="utf-8").partition(" ") if place.exists() else ("", "", "")
    if given != here:
        name = uuid.uuid4().hex[:12]
        files.write(place, f"{name} {here}")
    return name
