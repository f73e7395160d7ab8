"""States all that results depend on, and tells two evaluations apart by it.

model_sha256                          weights, architecture and how images are prepared
template_sha256, tokenizer_sha256     how a conversation becomes tokens
decoding, compute, rows, device, mesh how answers were computed
fidelity, chrf                        what else is computed, where it is asked for
tasks.NAME.settings                   the task file, resolved
tasks.NAME.languages.xx               count, prompts_sha256 (texts), data_sha256 (with images)
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from mllm_jax.checkpoints.fingerprints import fingerprint
from mllm_jax.common.errors import ConfigError, quoted
from mllm_jax.common.trees import flatten
from mllm_jax.common.versions import versions
from mllm_jax.config.loading import to_dict
from mllm_jax.evaluation.tasks.base import TableTask
from mllm_jax.evaluation.tasks.task import Question
from mllm_jax.generation.engine import Answerer
from mllm_jax.models import mllm

LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "pillow", "numpy")
READERS = 8  # threads that read image files
# of the machine's places, not of the results
_PATHS = ("model", "data", "images")
_ONE_BATCH = ("rows", "device", "mesh")  # change the last bits of a number at most

Tree = dict[str, Any]


def of_model(opened: Answerer, rows: int) -> Tree:
    """The part that does not depend on tasks."""
    sizes = {} if opened.mesh is None else dict(opened.mesh.shape)
    sizes.pop("context", None)  # one device: answers are not divided by length
    return {
        "model": str(opened.path),
        "model_sha256": model_digest(opened),
        "template_sha256": _sha256([opened.template.encode()]),
        "tokenizer_sha256": _sha256([opened.tokenizer.backend_tokenizer.to_str().encode()]),
        "decoding": {"temperature": 0, "end_ids": list(opened.ends)},
        "compute": opened.compute.compute,
        "rows": rows,
        "device": jax.local_devices()[0].device_kind,
        **({"mesh": sizes} if sizes else {}),
        "versions": versions(*LIBRARIES),
    }


def model_digest(opened: Answerer) -> str:
    """Of the numbers of all parameters and of what the network does with them.

    The same model in another folder or file format has the same digest.
    """
    leaves = opened.source.leaves(mllm.abstract_params(opened.model))
    about = {
        "weights": fingerprint(leaves),
        "model": to_dict(opened.config),
        "image_fit": opened.source.image_fit,
    }
    return _sha256([_json(about)])


def of_language(questions: Sequence[Question]) -> Tree:
    """The part about a task's questions in a language."""
    texts = [[[turn.role, *map(_part, turn.parts)] for turn in one.turns] for one in questions]
    facts = [[one.id, one.truth, one.options, one.group, one.category] for one in questions]
    names = list(dict.fromkeys(image for one in questions for image in one.images))
    with ThreadPoolExecutor(READERS) as pool:
        digests = dict(zip(names, pool.map(_image_digest, names), strict=True))
    images = [[digests[image] for image in one.images] for one in questions]
    return {
        "count": len(questions),
        "prompts_sha256": _sha256([_json(texts)]),
        "data_sha256": _sha256([_json(facts), _json(images)]),
    }


def of_task(task: TableTask, languages: Mapping[str, Tree]) -> Tree:
    """The part about a task."""
    return {"settings": task.settings, "languages": dict(languages)}


def key(settings: Tree, task: str, language: str, without_images: bool = False) -> str:
    """What an answer to a task in a language depends on, the machine left out; as hexadecimal."""
    of = settings["tasks"][task]
    about = {name: value for name, value in settings.items() if name not in _OF_THE_RUN}
    about |= {"task": of["settings"], "language": language, "of": of["languages"][language]}
    about |= {"without_images": True} if without_images else {}
    return _sha256([_json(about)])


_OF_NUMBERS = ("fidelity", "chrf")  # what is computed from the answers
_OF_THE_RUN = (*_PATHS, *_ONE_BATCH, *_OF_NUMBERS, "versions", "tasks")


def check_same(before: Tree, now: Tree, out: Path) -> None:
    """Refuses to continue an evaluation under other settings.

    Raises:
        ConfigError: the first setting that differs, with both values.
    """
    old, new = _compared(before), _compared(now)
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            values = f"{quoted(old.get(name), 60)}, not {quoted(new.get(name), 60)}"
            raise ConfigError(
                f"{out}: was begun with {name}={values}; continue with the same settings, or give "
                "another --out"
            )


def _compared(tree: Tree) -> Tree:
    flat = flatten({name: value for name, value in tree.items() if name not in _PATHS}, ".")
    return json.loads(_json(flat))  # as it is read from a file


def file_digest(path: Path) -> str:
    """sha256 of a file, as `sha256sum` prints it."""
    return _sha256([path.read_bytes()])


def _image_digest(image: str | bytes) -> str:
    return _sha256([image]) if isinstance(image, bytes) else file_digest(Path(image))


def _part(part: Any) -> str:
    return part if isinstance(part, str) else "\0image"  # no text of JSON begins with NUL


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
