"""The page of a step: it stands alone, holds what the loader's batch holds, and nothing else."""

import dataclasses
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from mllm_jax.commands.inspect import pages as inspect_rows
from mllm_jax.common.errors import ConfigError
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.token_text import TokenTexts
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import Loader
from mllm_jax.report import html
from mllm_jax.report.visible import visible
from mllm_jax.training import run_folder
from tests.support import browser, tiny

NASTY = "<script>alert('kaixo')</script>"
ROW = re.compile(r"<article class='card inspected'>.*?</article>", re.DOTALL)
TOKEN = re.compile(r"<(u|span) class=[^>]*title='[^']*'>(.*?)</\1>")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records that would break a page: markup, a long id, bytes, characters that show nothing."""
    path = tmp_path_factory.mktemp("nasty") / "nasty.json"
    turns = [
        {"from": "human", "value": f"{NASTY} 'zer' \"da\"?\n\tbi\n"},
        {"from": "gpt", "value": "🐈 ñandú \u202eatzera\u200b <b>&amp;</b>"},
    ]
    keys = [f"<i>{'very-long-id-' * 20}{n}" for n in range(5)]
    records = [{"id": key, "language": "eu", "conversations": turns} for key in keys]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def config(data: Path, nasty: Path, tmp_path: Path) -> Config:
    streams = tiny.tree(data, tmp_path)["data"]["streams"]
    streams["nasty"] = {"path": str(nasty), "format": "llama31"}
    return tiny.config(data, tmp_path / "run", data={"streams": streams, "length": 330})


def words(markup: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def percent(share: float) -> str:
    return words(html.percent(share))  # with an ordinary space


def load(config: Config) -> Loader:
    tokenizer = load_tokenizer(config.init.tokenizer or "")
    return Loader(config.data, config.model, tokenizer, config.seed)


def test_the_page_stands_alone(config: Config, tmp_path: Path):
    page = inspect_rows.run(config, tmp_path / "look")
    assert page == tmp_path / "look" / "index.html"
    assert [file.name for file in page.parent.iterdir()] == ["index.html"]
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"""\b(?:src|href)=["']?([^\s"'>]*)""", text)
    assert all(link.startswith(("data:", "#")) for link in links), "something is fetched"
    assert not re.findall(r"url\(|@import|https?://", text)
    assert set(re.findall(r"href='#([^']+)'", text)) <= set(re.findall(r"\bid=([\w-]+)", text))


@pytest.mark.parametrize("step", [0, 5, 1000])
def test_every_token_of_the_batch_is_there(config: Config, tmp_path: Path, step: int):
    """All rows: texts in order, trained ones as many as the weights, pictures as many as seats."""
    text = inspect_rows.run(config, tmp_path / "look", step, rows=99).read_text(encoding="utf-8")
    loader = load(config)
    batch, records, _ = loader.batch(step)
    texts = TokenTexts(load_tokenizer(config.init.tokenizer or ""))
    rows = ROW.findall(text)
    assert len(rows) == config.data.rows
    for n, row in enumerate(rows):
        shown = [
            unescape(re.sub(r"<i class=whole>.*?</i>|<[^>]+>", "", inside))
            for _, inside in TOKEN.findall(row)
        ]
        is_text = (batch.segments[n] > 0) & (batch.image_index[n] < 0)
        assert shown == [visible(texts[int(t)]) for t in batch.tokens[n][is_text]]
        assert row.count("<u class=") == batch.weights[n].sum()
        assert row.count("<img") == batch.image_index[n].max() // config.model.patches + 1
        assert len(re.findall("<section class=segment>", row)) == len(loader.rows(step)[n])
    headings = re.findall(r"<h4><span class=soft>\d+</span> (.*?)</h4>", text)
    assert [words(heading).replace(" / ", "/", 1) for heading in headings] == records


def test_markup_in_records_is_text(config: Config, tmp_path: Path):
    steps = (inspect_rows.run(config, tmp_path / f"{n}", n, rows=99) for n in range(3))
    text = "".join(page.read_text(encoding="utf-8") for page in steps)
    assert "nasty" in text
    assert "very-long-id-" in text
    for raw in ("<script", "<b>", "&amp;amp;b", "<i>very", "\u202e", "\u200b"):
        assert raw not in text.replace("<b style", ""), raw
    plain = "".join(unescape(re.sub(r"<[^>]+>", "", row)) for row in ROW.findall(text))
    assert visible(NASTY) in plain.replace("\n", "")


def test_fewer_rows_than_the_step_has(config: Config, tmp_path: Path):
    text = inspect_rows.run(config, tmp_path / "look", rows=2).read_text(encoding="utf-8")
    assert len(ROW.findall(text)) == 2
    assert "The first 2 of 8 rows." in text


def test_it_says_where_the_run_ends(config: Config, tmp_path: Path):
    last = inspect_rows.run(config, tmp_path / "last", 11).read_text(encoding="utf-8")
    after = inspect_rows.run(config, tmp_path / "after", 12).read_text(encoding="utf-8")
    assert "Step 11 of run" in last
    assert "ends before this step" not in last
    assert "The run ends before this step: its steps are 0 to 11." in after


def test_a_step_far_behind_the_end_is_refused_at_once(config: Config, tmp_path: Path):
    out = tmp_path / "look"
    bound = (
        r"the run has 12 steps \(train.steps\), and steps behind its end are planned up to 12499"
    )
    for step in (12_500, 10_000_000, 10**30):
        with pytest.raises(ConfigError, match=f"--step {step}: {bound}"):
            inspect_rows.run(config, out, step)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=200_000))
    with pytest.raises(ConfigError, match=r"--step 200000: .* planned up to 199999"):
        inspect_rows.run(longer, out, 200_000)
    assert not out.exists()


def test_a_run_over_epochs_ends_with_them(config: Config, tmp_path: Path):
    """Its last step has empty rows, which the page shows; there is none behind."""
    train = dataclasses.replace(config.train, steps=None, epochs=1.0)
    epochs = dataclasses.replace(config, train=train)
    loader = load(epochs)
    last = loader.steps(1) - 1
    text = inspect_rows.run(epochs, tmp_path / "last", last, 8).read_text(encoding="utf-8")
    rows = [len(re.findall("<section class=segment>", row)) for row in ROW.findall(text)]
    assert rows == [len(row) for row in loader.rows(last)]
    assert rows[0] > 0 and rows[-1] == 0
    with pytest.raises(ConfigError, match=rf"--step {last + 1}: the run has {last + 1} steps"):
        inspect_rows.run(epochs, tmp_path / "after", last + 1)


def test_shares_are_those_of_the_next_steps(config: Config, tmp_path: Path):
    text = words(inspect_rows.run(config, tmp_path / "look", 2).read_text(encoding="utf-8"))
    loader, steps = load(config), range(2, 2 + inspect_rows.SAMPLE)
    refs = [ref for step in steps for row in loader.rows(step) for ref in row]
    batches = [loader.batch(step).batch for step in steps]
    trained = sum(float(batch.weights.sum()) for batch in batches)
    own = sum(float(batch.weights[:, :-1][batch.streams[:, 1:] == 0].sum()) for batch in batches)
    records = sum(ref.stream == 0 for ref in refs) / len(refs)
    filled = sum(int((batch.segments > 0).sum()) for batch in batches)
    places = sum(batch.tokens.size for batch in batches)
    assert f"Steps 2 to 17: 128 rows with {len(refs):,} examples." in text
    assert f"padding {percent(1 - filled / places)} of {places:,} tokens" in text
    shares = [percent(2 / 5), percent(records), r"[\d.]+ %", percent(own / trained)]
    assert re.search(f" eu {' '.join(shares)} en ", text)


def test_left_out_records_are_counted(config: Config, data: Path, tmp_path: Path):
    changed = tiny.config(data, tmp_path / "run", data={"image_slots": 1, "over_long": "drop"})
    text = words(inspect_rows.run(changed, tmp_path / "look").read_text(encoding="utf-8"))
    assert "50 of 60 records are used." in text
    assert re.search(r" eu 24 19 (0 )?5 5 eu 0 en 24 19 ", text)


def test_the_tokenizer_of_weights_is_taken(config: Config, tmp_path: Path, monkeypatch):
    """As `train` does; nothing else of the model is opened."""
    asked = []

    class Source:
        files = Path(config.init.tokenizer or "")

    def opened(path: str) -> Source:
        asked.append(path)
        return Source()

    monkeypatch.setattr(run_folder, "open_model", opened)
    init = dataclasses.replace(config.init, weights="models/start", tokenizer=None)
    inspect_rows.run(dataclasses.replace(config, init=init), tmp_path / "look")
    assert asked == ["models/start"]


def test_refusals(config: Config, tmp_path: Path):
    out = tmp_path / "look"
    with pytest.raises(ConfigError, match=r"--step -1: steps are counted from 0"):
        inspect_rows.run(config, out, step=-1)
    with pytest.raises(ConfigError, match=r"--rows 0 must be positive"):
        inspect_rows.run(config, out, rows=0)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(ConfigError, match=r"look: exists and is not empty"):
        inspect_rows.run(config, out)
    assert [file.name for file in tmp_path.iterdir()] == ["look"]


def test_bad_data_leaves_nothing_behind(data: Path, tmp_path: Path):
    config = tiny.config(data, tmp_path / "run", data={"image_slots": 1})  # over_long: fail
    with pytest.raises(ConfigError, match="do not fit a row"):
        inspect_rows.run(config, tmp_path / "look")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------- for eyes


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2, 1.4.3)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_can_be_read(mode: str):
    names: dict[str, str] = {}
    for sheet in ("charts.css", "style.css", "inspect.css"):
        text = (Path(html.__file__).parent / sheet).read_text(encoding="utf-8")
        blocks = re.findall(r":root \{([^}]*)\}", text)
        for block in blocks if mode == "dark" else blocks[:1]:
            names |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    pairs = [(name, f"{name}-ink") for name in ("trained", "image", "control", "byte")]
    for paper, ink in [*pairs, ("card", "soft"), ("card", "ink"), ("paper", "c0")]:
        low, high = sorted((luminance(names[paper]), luminance(names[ink])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (paper, ink)


@pytest.mark.slow
@browser.needed
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_no_sideways_scrolling_in_a_real_browser(config: Config, tmp_path: Path, width: int):
    page = inspect_rows.run(config, tmp_path / "look", rows=8)
    shown = browser.show(page, tmp_path, width)
    assert shown.height > 2000, "the page did not load"
    assert shown.scroll <= shown.client <= width
