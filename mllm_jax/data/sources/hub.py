"""Downloads a stream from the Hugging Face Hub into its folder, once; nothing else fetches."""

from pathlib import Path

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
    folder, expected = Path(stream.path), {"hub": stream.hub, "revision": stream.revision}
    if in_use(folder):
        note = folder / NOTE
        stored = read_json(note) if note.is_file() else None
        location = f"data.streams.{name}.path={stream.path}"
        require(
            stored == expected,
            f"{location}: holds {quoted(stored)}, not {expected}; give another folder",
        )
        return
    location = f"data.streams.{name}.hub={stream.hub}"
    print(f"fetching {stream.hub} ({stream.revision}) -> {folder}", flush=True)
    try:
        with new_folder(folder) as temporary:
            snapshot_download(
                stream.hub, repo_type="dataset", revision=stream.revision, local_dir=temporary
            )
            write_json(temporary / NOTE, expected)
    except HFValidationError as error:
        raise ConfigError(f"{location}: {one_line(str(error))}") from error
    except (HTTPError, XetDownloadError, OSError) as error:
        raise RunError(f"{location}: cannot be fetched: {one_line(str(error))}") from error
