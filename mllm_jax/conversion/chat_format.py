"""Gives a joined model a chat template where its backbone has none, and says when there is none."""

from pathlib import Path

from mllm_jax.checkpoints.hf import files as hf_files
from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.common.errors import require
from mllm_jax.data.chat.templates import END_TOKENS, TEMPLATES, source_for, special_tokens

# of data.chat.templates.TEMPLATES: the first that the tokenizer has the tokens of
PREFERRED = ("llama31", "llama3", "vicuna_v1", "plain")


def choose_template(folder: Path, backbone: Path, chat_format: str | None) -> str | None:
    """Writes the chat template of a model, and the ids at which its answers end.

    Args:
        folder: of the model, with the backbone's tokenizer files in it.
        backbone: where these come from, for messages.
        chat_format: a key of TEMPLATES; None: the backbone's own or, where it has none, the first
            of PREFERRED that fits its tokenizer.

    Returns:
        One line that says what was chosen; None where the backbone's own template stays.

    Raises:
        ConfigError: the tokenizer lacks a special token that `chat_format` writes.
    """
    has_template = (folder / hf_files.TEMPLATE).is_file()
    if chat_format is None and has_template:
        return None
    known = hf_tokenizer.tokens(folder).keys()
    fitting = [name for name in PREFERRED if known >= set(special_tokens(TEMPLATES[name]))]
    if chat_format is None and not fitting:
        return f"{backbone}: no chat template, and no special tokens of {', '.join(PREFERRED)}"
    name = chat_format or fitting[0]
    template = source_for(name, known, hf_tokenizer.end_text(folder))
    missing = [token for token in special_tokens(template) if token not in known]
    require(
        not missing,
        f"--chat-format {name}: the tokenizer of {backbone} has no {', '.join(missing)}; its "
        f"tokens fit {', '.join(fitting) or 'none of the formats'}",
    )
    (folder / hf_files.TEMPLATE).write_text(template, encoding="utf-8")
    hf_files.add_end_tokens(folder, [end for end in END_TOKENS if end in template])
    if chat_format is None:
        return f"chat template: {name}, since {backbone} has none; --chat-format chooses another"
    return f"chat template: {name}" + (", instead of the backbone's own" if has_template else "")


def warn_without_template(folder: Path, name: str | Path) -> None:
    """Says in one line that a model cannot be asked anything; `name` is the folder's in it."""
    if not (folder / hf_files.TEMPLATE).is_file():
        print(
            f"{name}: no chat template, so generate, chat and evaluate cannot ask this model; "
            "join it with --chat-format, or train it on conversations"
        )
