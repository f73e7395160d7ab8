"""`mllm-jax convert`: from and to Hugging Face folders, and two backbones into one model."""

import argparse
from pathlib import Path

from mllm_jax.commands.flags import CHAT_FORMATS, Usage

FORMATS = ("float32", "bfloat16", "float16")
USAGE = Usage("Hugging Face folder <-> model folder; two backbones -> one model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_subparsers(dest="way", metavar="WAY", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return ways.add_parser(name, help=text, description=text, allow_abbrev=False)

    way = add("from-hf", "a Hugging Face folder into a model folder")
    way.add_argument("src", type=Path, metavar="SRC")
    way.add_argument("out", type=Path, metavar="OUT")
    way = add("join", "CLIP or SigLIP, and Llama, into one model with a new connector")
    way.add_argument("out", type=Path, metavar="OUT")
    way.add_argument("--vision", type=Path, required=True, metavar="VISION_DIR")
    way.add_argument("--language", type=Path, required=True, metavar="LLAMA_DIR")
    kinds = way.add_mutually_exclusive_group()
    kinds.add_argument("--connector", choices=("linear", "mlp"), default="linear")
    kinds.add_argument(
        "--connector-weights",
        type=Path,
        metavar="FILE",
        help="a trained connector instead of a new one: mm_projector.bin of the original LLaVA",
    )
    way.add_argument(
        "--pool",
        choices=("none", "average", "shuffle"),
        default="none",
        help="of 2 x 2 patches in a new connector: a quarter of the tokens; default: %(default)s",
    )
    way.add_argument(
        "--chat-format",
        choices=CHAT_FORMATS,
        help="chat template of the model; default: LLAMA_DIR's own, or one that fits its tokenizer",
    )
    way.add_argument(
        "--new-rows",
        choices=("transformers", "ndino"),
        default="transformers",
        help="after whom the new rows of the token tables are drawn: N(mean, 1e-9 covariance) of "
        "each table's rows, or N(mean, 1e-5 covariance) of the token table's; default: %(default)s",
    )
    way = add("to-hf", "a model or run folder into a Hugging Face folder")
    way.add_argument("model", type=Path, metavar="MODEL")
    way.add_argument("out", type=Path, metavar="OUT")
    way.add_argument("--dtype", choices=FORMATS, help="default: as stored")
    way.add_argument(
        "--connector-form",
        choices=("gelu", "linear"),
        help="of a linear connector; default: gelu, which every runtime opens, where it fits",
    )
    way = add("to-peft", "the adapters of a run into a folder that the peft library opens")
    way.add_argument("run", type=Path, metavar="RUN")
    way.add_argument("out", type=Path, metavar="OUT")
    way.add_argument(
        "--base", metavar="NAME", help="name or path of the base; default: the run's init.weights"
    )
    way = add("from-peft", "an adapter folder of peft, merged into its base: a model folder")
    way.add_argument("src", type=Path, metavar="SRC")
    way.add_argument("out", type=Path, metavar="OUT")
    way.add_argument(
        "--base", type=Path, metavar="DIR", help="default: the folder's base_model_name_or_path"
    )


def run(options: argparse.Namespace) -> None:
    from mllm_jax.conversion import conversions

    o = options
    if o.way == "from-hf":
        conversions.from_hf(o.src, o.out)
    elif o.way == "join":
        conversions.join(
            o.out,
            vision=o.vision,
            language=o.language,
            connector=o.connector,
            chat_format=o.chat_format,
            new_rows=o.new_rows,
            connector_weights=o.connector_weights,
            pool=o.pool,
        )
    elif o.way == "to-peft":
        conversions.to_peft(o.run, o.out, base=o.base)
    elif o.way == "from-peft":
        conversions.from_peft(o.src, o.out, base=o.base)
    else:
        conversions.to_hf(o.model, o.out, dtype=o.dtype, connector_form=o.connector_form)
