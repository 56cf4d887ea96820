"""From a version back to files: the commit, params.yaml, dvc.lock and DVC's outputs of the run that it was registered from."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from basin import files
from basin.errors import Mistake
from basin.registry import candidates, lookup, snapshot, versions
from basin.registry.lookup import NOTHING
from basin.registry.opening import opened
from basin.registry.snapshot import LOCK, PARAMS, Snapshot, git, outputs
from basin.repro import graph


def checkout(target: str) -> tuple[Snapshot, list[str]]:
    """Restore the run of a version into the workspace; that run, and the outputs that were restored.

    Raises Mistake, before anything is touched, where tracked files have changes that are in no commit, or with all that is missing.
    """
    run = run_of(target)
    if changes := git("status", "--porcelain", "--untracked-files=no").splitlines():
        names = ", ".join(line[3:] for line in changes[:5])
        raise Mistake(f"workspace: has changes that are in no commit (got {names}). Commit them, then run this again.")
    outs = wanted(run)
    if lacks := list(missing(run, outs)):
        raise Mistake(*lacks)
    subprocess.run(["git", "checkout", "--quiet", "--detach", run.at["commit"]], check=True)
    if snapshot.of(Path(), run.at) != run:
        files.write(Path(PARAMS), run.params)
        files.write(Path(LOCK), run.lock)
    done = subprocess.run([*graph.DVC, "checkout", *outs], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise Mistake(f"{target}: the commit is checked out, DVC's outputs are not (got {done.stderr.strip()[-300:]}). Run: dvc checkout.")
    return run, list(outs)


def run_of(target: str) -> Snapshot:
    """The run that stands in a version."""
    with opened(NOTHING) as store:
        version = lookup.find_one(store, target)
        with versions.files(store, version, "run") as folder:
            if not (folder / "run" / PARAMS).exists():
                raise Mistake(f"{target}: its run was not kept (got a version of an older Basin). Commit: {version.tags.get('commit')}.")
            at = {key: version.tags[key] for key in ("commit", "dirty", "changed")}
            return Snapshot((folder / "run" / PARAMS).read_text(encoding="utf-8"), (folder / "run" / LOCK).read_text(encoding="utf-8"), at)


def wanted(run: Snapshot) -> dict[str, str]:
    """path -> DVC's digest, of the outputs of the run's own stages; dvc.lock remembers those of others too."""
    with tempfile.TemporaryDirectory() as folder:
        settings, _ = run.open(Path(folder))
    models = {f"models/{model}" for model in candidates.names(settings)}
    own = {path: md5 for path, md5 in outputs(run.lock).items() if path in models or path.startswith("data/")}
    return own | run.outs(settings)


def missing(run: Snapshot, outs: dict[str, str]) -> Iterator[str]:
    """What stands between the workspace and the run, a line each."""
    commit, cache = run.at["commit"], graph.cache()
    if not git("cat-file", "-t", commit).startswith("commit"):
        yield f"commit: not in this repository (got {commit}). Fetch it: git fetch --all."
    changed = [name for name in run.at["changed"].split(", ") if name not in ("none", PARAMS)]
    for name in changed if run.at["dirty"] == "true" else ():
        yield f"{name}: had changes in no commit when the model was registered (got a dirty version). `basin pull` takes the model alone."
    for path, md5 in outs.items():
        if not snapshot.cached(md5, cache):
            yield f"{path}: not in DVC's cache (got no {md5 or 'digest of it'}). Fetch it: dvc fetch; `basin pull` takes the model alone."
