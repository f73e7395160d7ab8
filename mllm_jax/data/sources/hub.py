"""Downloads a stream from the Hugging Face Hub into its folder, once; nothing else fetches."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    XetDownloadError,
)

from mllm_jax.common.errors import ConfigError, RunError, one_line, quoted, require
from mllm_jax.common.folders import in_use, new_folder
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config.data import StreamConfig

NOTE = "hub.json"  # which data set and revision a folder holds


def fetch(name: str, stream: StreamConfig) -> None:
    """Downloads a stream's data set into `path`; does nothing if it is there already.

    Raises:
        ConfigError: the folder holds another data set or revision, or `hub` is not a name.
        RunError: it cannot be downloaded.
    """
    if stream.hub is None:
        return
    section = f"data.streams.{name}"
    download(
        {"hub": stream.hub, "revision": stream.revision},
        Path(stream.path),
        f"{section}.path={stream.path}",
        f"{section}.hub={stream.hub}",
    )


def download(note: dict[str, Any], folder: Path, folder_place: str, hub_place: str) -> None:
    """Downloads a data set into a folder; does nothing if it is there already.

    Args:
        note: what the folder's hub.json says: "hub", "revision" and, if not all, "files": patterns.
        folder: to make.
        folder_place, hub_place: where a person named the folder and the data set, for messages.

    Raises:
        ConfigError: the folder holds another data set or revision, or `hub` is not a name.
        RunError: it cannot be downloaded.
    """
    if in_use(folder):
        file = folder / NOTE
        stored = read_json(file) if file.is_file() else None
        require(
            stored == note,
            f"{folder_place}: holds {quoted(stored)}, not {note}; give another folder",
        )
        return
    print(f"fetching {note['hub']} ({note['revision']}) -> {folder}", flush=True)
    try:
        with new_folder(folder) as temporary:
            snapshot_download(
                note["hub"],
                repo_type="dataset",
                revision=note["revision"],
                local_dir=temporary,
                allow_patterns=note.get("files"),
            )
            write_json(temporary / NOTE, note)
    except HFValidationError as error:
        raise ConfigError(f"{hub_place}: {one_line(str(error))}") from error
    except (HTTPError, XetDownloadError, OSError) as error:
        raise RunError(f"{hub_place}: cannot be fetched: {one_line(str(error))}") from error
