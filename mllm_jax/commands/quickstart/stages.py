"""The whole way in minutes on a laptop, on handwritten numbers, no download.

    scans -> OUT/data (LLaVA JSON + PNG), OUT/tokenizer -> OUT/configs
          -> recipe: backbone, align, instruct, evaluation, export -> OUT/report.html

The configs are those of configs/quickstart with the paths of OUT in them: ordinary files, for
ordinary commands.
"""

import json
import re
import time
from pathlib import Path

import jax

from mllm_jax.commands.recipe import stages as recipe
from mllm_jax.commands.recipe.files import load_recipe
from mllm_jax.commands.report import pages
from mllm_jax.commands.report.compared import FOLDER as COMPARED
from mllm_jax.commands.report.pages import PAGE
from mllm_jax.common.errors import ConfigError, require
from mllm_jax.common.folders import in_use, new_folder
from mllm_jax.common.json_file import read_json, write_json
from mllm_jax.config import loading
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.digits.phrases import HEADINGS
from mllm_jax.digits.records import Counts, make_data
from mllm_jax.digits.tokenizer import make_tokenizer
from mllm_jax.evaluation.runner import evaluate

HOME = "runs/quickstart"  # what the paths in configs/quickstart begin with
BEFORE = "align"  # the stage that the last one is compared with
TITLE = "A model that reads handwritten numbers in Basque and English"


def run(out: str | Path = HOME, share: float = 1.0) -> Path:
    """Makes the data, trains the stages, evaluates, exports, and writes the page.

    The same command continues a quickstart that was stopped.

    Args:
        out: folder of everything that is made.
        share: of the steps, for a quick check (0 < share <= 1); the data and the held-out questions
            shrink with it.

    Returns:
        OUT/report.html.

    Raises:
        ConfigError: OUT holds something else, another share, or a finished quickstart.
    """
    start = time.perf_counter()
    out = Path(out)
    require(0 < share <= 1, f"--share={share}: must lie in (0, 1]")
    if not _begun(out, share):
        _prepare(out, share)
    # batches of four rows: one device, whatever the machine has
    recipe.run(out / "configs" / "recipe.yaml", out, devices=jax.devices()[:1])
    _compare(out)
    _say(out, time.perf_counter() - start)
    return out / PAGE


def configs_folder(name: str) -> Path:
    """A folder of YAML files that come with mllm_jax.

    It is beside the package in a checkout, inside it in a wheel.

    Raises:
        ConfigError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[2]
    places = [package.parent / "configs" / name, package / "configs" / name]
    for place in places:
        if (place / "recipe.yaml").is_file():
            return place
    raise ConfigError(
        f"configs/{name}: not found in {' or '.join(map(str, places))}; install mllm-jax again"
    )


def localised(text: str, out: Path, share: float, home: str = HOME) -> str:
    """A config file's text with OUT for `home` in its paths and `share` of its steps.

    Comments stay.
    """
    # paths stand in double quotes, which JSON and YAML share
    inside = json.dumps(str(out), ensure_ascii=False)[1:-1]
    text = text.replace(f'"{home}', f'"{inside}')

    def scaled(match: re.Match[str]) -> str:
        return f"{match[1]}{max(1, round(int(match[2]) * share))}"

    return re.sub(r"(?m)^(  (?:steps|save_every): )(\d+)", scaled, text)


# ------------------------------------------------------------------------------------------ insides


def _begun(out: Path, share: float) -> bool:
    """Whether OUT holds an unfinished quickstart with its data; False for a new or empty folder."""
    if not in_use(out):
        return False
    mark = out / "quickstart.json"
    require(mark.is_file(), f"--out={out}: exists and is not empty; give another folder")
    parts = ("evaluation", "hf", PAGE, f"{COMPARED}/{BEFORE}/scores.json")
    require(
        not all((out / part).exists() for part in parts),
        f"--out={out}: holds a finished quickstart; give another folder or remove it",
    )
    before = read_json(mark)["share"]
    require(
        before == share,
        f"--share={share}: {out} was begun with --share {before}; give the same, or another --out",
    )
    return True


def _prepare(out: Path, share: float) -> None:
    """Data, tokenizer, configs: all of it or, if it is stopped, nothing."""
    start = time.perf_counter()
    source, counts = configs_folder("quickstart"), _counts(share)
    texts = {
        file.name: localised(file.read_text(encoding="utf-8"), out, share)
        for file in sorted(source.glob("*.yaml"))
    }
    with new_folder(out) as folder:
        (folder / "configs").mkdir()
        for name, text in texts.items():
            (folder / "configs" / name).write_text(text, encoding="utf-8")
        model = loading.load(Config, folder / "configs" / "backbone.yaml").model
        assert model.language is not None
        sentences = make_data(folder / "data", counts)
        make_tokenizer(sentences, folder / "tokenizer", TEMPLATES["llama3"], model.language.vocab)
        seconds = time.perf_counter() - start
        # the recipe adds to this summary, the report takes its headings from it
        summary = {"title": TITLE, "kinds": HEADINGS, "stages": [], "seconds": {"data": seconds}}
        write_json(folder / "summary.json", summary)
        write_json(folder / "quickstart.json", {"share": share})
    amounts = f"{counts.pictures:,} pictures and {len(sentences) // 2:,} records"
    print(f"made {amounts} in {seconds:.1f} s: {out / 'data'}", flush=True)


def _compare(out: Path) -> None:
    """Evaluates the stage before the last one too, and writes the page with the comparison."""
    section = load_recipe(out / "configs" / "recipe.yaml").config.evaluate
    assert section is not None
    folder = out / COMPARED / BEFORE
    numbers = (section.max_new_tokens, section.rows)
    evaluate(out / BEFORE, section.data, folder, section.images, *numbers, resume=True)
    pages.run(out)


def _counts(share: float) -> Counts:
    full = Counts()
    return full._replace(
        pictures=max(600, round(full.pictures * share)),
        text=max(600, round(full.text * share)),
        heldout=max(1, round(full.heldout * share)),
    )


def _say(out: Path, seconds: float) -> None:
    scores = read_json(out / "evaluation" / "scores.json")
    print(f"\ndone in {seconds / 60:.1f} minutes")
    for language, of in scores["languages"].items():
        share = f"{of['exact_match']:.1%} of {of['count']:,} questions"
        print(f"  exact match on held-out pictures, {language}: {share}")
    image = out / "data" / "images" / "test-00000.png"
    print(f"  page     {out / PAGE}")
    print(f"  export   {out / 'hf'} (opens with transformers)")
    print(f"  try it   mllm-jax generate {out / 'instruct'} --image {image} ", end="")
    print("--prompt 'Zein zenbaki da hau?'")
