"""Libraries that are measured beside us and cannot live in our environment: in a folder of their own, for as long as that takes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from basin.errors import Mistake

PACKAGES = ("torchattacks==3.5.1", "adv-lib==0.2.8", "scikit-image==0.26.0", "lazy-loader==0.6")


@contextmanager
def importable(asked: bool) -> Iterator[None]:
    """The packages, if they are asked for, without what they depend on. Raises Mistake where they cannot be installed."""
    if not asked:
        yield
        return
    with TemporaryDirectory() as place:
        install = ["-m", "uv", "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", place, *PACKAGES]
        done = subprocess.run([sys.executable, *install], capture_output=True, encoding="utf-8")
        if done.returncode:
            raise Mistake(
                f"--peers: could not install them (got {done.stderr.strip()[-200:]!r}). Leave --peers out, or look at the network."
            )
        Path(place, "visdom.py").touch()  # a plotting client that adv-lib imports and that nothing here draws with
        sys.path.append(place)
        try:
            yield
        finally:
            sys.path.remove(place)
