"""Which code made something."""

import functools
import hashlib
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent


@functools.cache
def commit(root: Path = PACKAGE.parent) -> dict[str, str | bool | None]:
    """The last commit of the code below `root`, and whether the code differs from it; unknown without git.

    Asked for once: what is committed while a process runs is not the code that it holds.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words, "--", "dotlib", "notebooks"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        found = git("rev-list", "-1", "HEAD")
        return {"commit": found or "unknown", "dirty": bool(git("status", "--porcelain")) if found else None}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": None}


@functools.cache
def code_digest() -> str:
    """Hash of the package's sources, recorded with each run."""
    sources = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
