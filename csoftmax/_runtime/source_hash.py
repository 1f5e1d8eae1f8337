"""The hash by which an editable install detects a stale build.  setup.py loads this file by its path."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sources(root: Path) -> list[Path]:
    """All files of a checkout that are compiled, and the file of compiler flags."""
    package = root / "csoftmax"
    files = [*sorted((root / "src_c").rglob("*.[ch]")), root / "src_c" / "flags.txt"]
    files += sorted((package / "include").glob("*.h"))
    for folder in (package, package / "_cpu"):
        files += [path for path in sorted(folder.iterdir()) if path.suffix in (".c", ".h", ".pxd", ".pxi", ".pyx")]
    return [path for path in files if path.suffix != ".c" or not path.with_suffix(".pyx").exists()]  # Cython's output


def source_hash(root: Path) -> str | None:
    """Hash of the sources of a checkout, or None if `root` is not one, as beside an installed package."""
    if not (root / "src_c" / "registry.h").is_file():
        return None
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources(root))).hexdigest()[:16]
