"""Writing files whole."""

from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write beside `path` and rename: a reader sees the old file or the new one, never half of it.

    The mode is what the umask says. (`safetensors.torch.save_file` gives 0600, which nobody else could read from a shared cache.)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
