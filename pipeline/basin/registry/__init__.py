"""The registry: one registered model a data set and threat, one version a model folder, an alias a model's name, and `champion`.

Versions are known by DVC's digest of their folder, so registering again registers nothing; where outcomes have changed, the version's
numbers are refreshed. An alias moves only to a version that, loaded back, gives the folder's logits bit for bit; `champion` only to one
that the gate lets through. Decision 0004 and docs/registry.md give the reasons.
"""

from pipeline.registry.lookup import compare, find, load, load_with_twin, pull, show
from pipeline.registry.promotion import CHAMPION
from pipeline.registry.registration import alias, promote, register_all
from pipeline.registry.removal import gc, remove
from pipeline.registry.upkeep import sync, verify

__all__ = [
    "CHAMPION", "alias", "compare", "find", "gc", "load", "load_with_twin", "promote", "pull", "register_all", "remove", "show", "sync",
    "verify",
]  # fmt: skip
