"""`mllm-jax new`: a recipe, its data and its first weights for a language of one's own."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import QUESTION_FORMATS, Usage

USAGE = Usage("a recipe, its data and its first weights for a language of your own")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--language", required=True, metavar="CODE", help="for example gl")
    parser.add_argument("--name", metavar="NAME", help="of the language, for example Galician")
    parser.add_argument("--vision", type=Path, required=True, metavar="VISION_DIR")
    parser.add_argument("--llm", type=Path, required=True, metavar="LLAMA_DIR")
    parser.add_argument("--connector", choices=("linear", "mlp"), default="linear")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="captions, conversations or texts: .json, .jsonl, or a file or folder of Parquet, "
        "Arrow, ArrayRecord, WebDataset or .txt",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="where image paths start; default: the folder of each FILE",
    )
    parser.add_argument(
        "--chat-format",
        choices=QUESTION_FORMATS,
        help="of questions; default: that of LLAMA_DIR's chat template",
    )
    parser.add_argument(
        "--parallel",
        type=Path,
        nargs=2,
        metavar=("FILE", "ENGLISH_FILE"),
        help="lines of text in the language and their English translations: how many tokens more "
        "the language takes",
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.commands.new import languages

    languages.check(options.language)

    from mllm_jax.commands.new import project

    o = options
    backbones = project.Backbones(o.vision, o.llm, o.connector, o.chat_format)
    language = languages.Language(o.language, o.name or languages.name(o.language))
    project.run(o.out, language, backbones, o.data, o.images, o.parallel)
