"""Restricts where links in a folder of data, images or weights may lead: to named folders.

The Hugging Face Hub's cache keeps every file as a link to its content beside the snapshots:

    datasets--org--name/snapshots/REVISION/a.parquet -> ../../blobs/HASH
"""

import os
from collections.abc import Sequence
from pathlib import Path


def link_roots(folder: Path, links: Sequence[str] = ()) -> tuple[str, ...]:
    """Resolved folders in which what `folder` links to may be.

    Args:
        folder: of data, images or weights; it may itself be a link.
        links: other folders that a config names.
    """
    roots = [os.path.realpath(folder), *(os.path.realpath(link) for link in links)]
    for place in {Path(os.path.abspath(folder)), Path(roots[0])}:
        for parent in (place, *place.parents):
            blobs = parent.parent.parent / "blobs"
            if parent.parent.name == "snapshots" and blobs.is_dir():
                roots.append(os.path.realpath(blobs))
    return tuple(dict.fromkeys(roots))


def is_inside(path: str, roots: Sequence[str]) -> bool:
    """Whether a path, once its links are followed, is one of these resolved folders or in one."""
    resolved = os.path.realpath(path)
    return any(os.path.commonpath((resolved, root)) == root for root in roots)
