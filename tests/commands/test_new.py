"""A project for a language of one's own: its split, its values, and the whole way to its export."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mllm_jax.checkpoints import stage_file
from mllm_jax.checkpoints.hf import tokenizer as hf_tokenizer
from mllm_jax.commands.main import main
from mllm_jax.commands.new import choices, languages, split, written
from mllm_jax.commands.new import tokenizer as tokenizer_report
from mllm_jax.commands.new.measure import Measured
from mllm_jax.common.errors import ConfigError
from mllm_jax.config import loading
from mllm_jax.config.recipe import RecipeConfig
from mllm_jax.data.chat.templates import TEMPLATES
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.records.fields import ImageFolder
from mllm_jax.data.records.layouts import Columns
from mllm_jax.data.records.parse import IMAGE, Record, Turn, read_record
from mllm_jax.evaluation.questions import load_records
from tests.checkpoints.folders import make_clip, rewrite

START = ["--init.weights", "gl/models/start"]  # the weights of the stage before are yet to come
ANSWER = {"from": "gpt", "value": "Un selo."}
COLOURS = {"vermello": (200, 30, 30), "verde": (30, 160, 60), "azul": (40, 60, 200)}


@pytest.fixture(scope="module")
def backbones(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vision and llama: random, and as published before they could chat."""
    folder = tmp_path_factory.mktemp("backbones")
    make_clip(folder / "clip")
    rewrite(oracle / "llama31", folder / "llama", lambda t: t)
    (folder / "llama" / "chat_template.jinja").unlink()
    return folder


def picture(number: int) -> bytes:
    """A picture of one colour with a mark of its own."""
    pixels = np.zeros((24, 20, 3), np.uint8)
    pixels[:] = list(COLOURS.values())[number % 3]
    pixels[number % 24, number // 24 % 20] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def colour(number: int) -> str:
    return list(COLOURS)[number % 3]


def caption(number: int) -> dict[str, Any]:
    return {"id": f"c{number}", "image": f"{number}.png", "caption": f"Un selo {colour(number)}."}


def question(number: int) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\nDe que cor é?"},
        {"from": "gpt", "value": colour(number)},
    ]
    return {"id": f"q{number}", "image": f"{number}.png", "conversations": turns}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """images/, and 60 captions and questions about them, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(60):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
    write(tmp_path / "selos.jsonl", [caption(number) for number in range(60)])
    write(tmp_path / "preguntas.jsonl", [question(number) for number in range(60)])
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def new(backbones: Path, *words: str) -> int:
    weights = ["--vision", str(backbones / "clip" / "vision"), "--llm", str(backbones / "llama")]
    return main(["new", "gl", "--language", "gl", *weights, *words])


BOTH = ["--data", "selos.jsonl", "preguntas.jsonl", "--images", "images"]


# ---------------------------------------------------------------------------------------- projects


@pytest.mark.slow
def test_the_whole_way(backbones: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    """From records to a folder for stock transformers, by the commands of the README."""
    assert new(backbones, *BOTH) == 0
    said = capsys.readouterr().out
    assert "captions, gl: " in said and "gl is ready; gl/README.md has the next commands" in said
    assert "written to gl/models/start\n" in said and "partial" not in said
    text = Path("gl/README.md").read_text(encoding="utf-8")
    assert text.startswith("# A multimodal model for Galician (gl)")
    for command in ("prepare gl/configs/recipe.yaml", "recipe gl/configs/recipe.yaml"):
        assert f"mllm-jax {command}\n" in text
    assert main(["prepare", "gl/configs/recipe.yaml"]) == 0
    few = ["--train.epochs", "null", "--train.steps", "2", "--evaluate.max_new_tokens", "2"]
    assert main(["recipe", "gl/configs/recipe.yaml", *few]) == 0
    scores = json.loads(Path("gl/runs/evaluation/scores.json").read_text())
    assert scores["languages"]["gl"]["count"] == len(read(Path("gl/data/heldout/questions.jsonl")))
    transformers = pytest.importorskip("transformers")
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        "gl/runs/hf", output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert model.config.vision_config.image_size == 28


def test_the_stage_files_say_why(backbones: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    assert new(backbones, *BOTH) == 0
    said = capsys.readouterr().out
    assert "| sample of --data |       gl |" in said
    align = stage_file.load("gl/configs/align.yaml")
    recipe = loading.load(RecipeConfig, "gl/configs/recipe.yaml")
    assert [stage.file for stage in recipe.stages] == ["align.yaml", "instruct.yaml"]
    assert recipe.evaluate is not None
    assert recipe.evaluate.data == "gl/data/heldout/questions.jsonl"
    for stage, kind in (("align", "captions"), ("instruct", "questions")):
        evaluate = yaml.safe_load(Path(f"gl/configs/{stage}.yaml").read_text())["train"]["evaluate"]
        assert evaluate["streams"]["heldout"]["path"] == f"gl/data/heldout/{kind}.jsonl"
    assert align.model.language is not None and align.model.language.vocab == 448
    stream = align.data.streams["selos"]
    assert (stream.format, stream.language, stream.images) == ("plain", "gl", "images")
    text = Path("gl/configs/align.yaml").read_text(encoding="utf-8")
    values = ("length", "image_slots", "rows", "learning_rate", "epochs", "microbatches", "remat")
    for key in values:
        line = next(n for n, x in enumerate(text.splitlines()) if x.strip().startswith(f"{key}:"))
        assert "#" in "".join(text.splitlines()[line - 1 : line + 1]), f"{key} has no reason"
        assert f"{key} = " in said
    assert "model" not in yaml.safe_load(text), "it comes from the weights"


def test_captions_alone(backbones: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    assert new(backbones, "--data", "selos.jsonl", "--images", "images") == 0
    assert "only captions (nothing is asked): the recipe ends with align" in capsys.readouterr().out
    recipe = loading.load(RecipeConfig, "gl/configs/recipe.yaml")
    assert [stage.file for stage in recipe.stages] == ["align.yaml"]
    assert not Path("gl/configs/instruct.yaml").exists()
    assert recipe.evaluate is not None
    assert recipe.evaluate.data == "gl/data/heldout/captions.jsonl"
    template = Path("gl/models/start/chat_template.jinja").read_text(encoding="utf-8")
    assert template == TEMPLATES["plain"], "a picture is answered as it was trained"


def test_questions_alone(backbones: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--data", "preguntas.jsonl", "--images", "images", "--connector", "mlp"]
    assert new(backbones, *words, "--chat-format", "llama3") == 0
    assert "no align stage" in capsys.readouterr().out
    stages = loading.load(RecipeConfig, "gl/configs/recipe.yaml").stages
    assert [stage.file for stage in stages] == ["instruct.yaml"]
    config = stage_file.load("gl/configs/instruct.yaml")
    assert config.init.weights == "gl/models/start"
    assert config.model.connector is not None and config.model.connector.kind == "mlp"
    assert config.data.streams["preguntas"].format == "llama3"
    ends = hf_tokenizer.special_ids(Path("gl/models/start"))["eos_token_id"]
    assert hf_tokenizer.tokens(Path("gl/models/start"))["<|eot_id|>"] in ends


def test_two_languages_and_a_table_with_pictures(backbones: Path, data: Path):
    """A Parquet file that holds its pictures: they become files, and its records are split."""
    rows = [
        {"image": {"bytes": picture(number), "path": None}, "question": "What colour is it?",
         "answer": colour(number), "language": "en"}
        for number in range(60, 100)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), data / "stamps.parquet")
    words = ["--data", "selos.jsonl", "preguntas.jsonl", "stamps.parquet", "--images", "images"]
    assert new(backbones, *words) == 0
    config = stage_file.load("gl/configs/instruct.yaml", START)
    assert config.data.languages == ("en", "gl")
    streams = config.data.streams
    assert {name: stream.weight for name, stream in streams.items()} == {
        "preguntas": 0.8, "stamps": 0.2,
    }  # fmt: skip
    assert {stream.images for stream in streams.values()} == {"."}
    first = read(Path("gl/data/train/stamps.jsonl"))[0]
    assert first["image"].startswith("gl/data/images/") and Path(first["image"]).is_file()
    source = streams["stamps"]
    questions = load_records("stamps", source, ("en", "gl"))
    assert len(questions) == 32 and all(isinstance(image, str) for image in questions[0].images)


def test_the_tokenizer_report(oracle: Path, tmp_path: Path):
    texts = {"gl": "Un selo.\n\nAzul\n", "en": "Blue stamp.\nleft out\nBlue\n"}
    files = [tmp_path / f"{language}.txt" for language in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(oracle / "llama31")
    record = Record("1", (Turn("user", ("a",)), Turn("assistant", ("Azul",))), (), "gl")
    table = tokenizer_report.report(
        tokenizer, [record], "gl", tokenizer_report.read_parallel(files)
    )
    azul, gl, en = (
        sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in of)
        for of in (["Azul"], ["Un selo.", "Azul"], ["Blue stamp.", "Blue"])
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows == [
        ["sample of --data", "gl", "1", f"{azul:.2f}", f"{azul / 4:.2f}", "", ""],
        ["--parallel", "gl", "3", f"{gl / 3:.2f}", f"{gl / 12:.2f}", f"{gl / en:.2f}", "2"],
        ["--parallel", "en", "3", f"{en / 3:.2f}", f"{en / 15:.2f}", "", ""],
    ]
    hint = "no premium over English: give two files of translated lines: --parallel FILE"
    assert hint in tokenizer_report.report(tokenizer, [record], "gl")


def test_a_file_of_several_kinds_is_several_streams(backbones: Path, data: Path):
    described = [
        {"id": f"t{n}", "image": f"{n}.png", "conversations": [
            {"from": "human", "value": "<image>"}, {"from": "gpt", "value": colour(n)}]}
        for n in range(30)
    ]  # fmt: skip
    write(data / "todo.jsonl", [*described, *(question(n) for n in range(30, 60))])
    assert new(backbones, "--data", "todo.jsonl", "--images", "images") == 0
    assert list(stage_file.load("gl/configs/align.yaml").data.streams) == ["todo_captions"]
    names = sorted(path.name for path in Path("gl/data").rglob("*.jsonl"))
    assert names == [
        "captions.jsonl", "questions.jsonl", "todo_captions.jsonl", "todo_questions.jsonl",
    ]  # fmt: skip


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "none.jsonl"], "--data none.jsonl: no such file or folder"),
        (["--data", "images"], "--data images: expected a file, or a folder of files, named .json"),
        (["--data", "text.jsonl"], "no record has a picture"),
        (["--data", "odd.jsonl"], "the first row has the columns ['one', 'two']; expected"),
        (["--data", "empty.jsonl"], "--data empty.jsonl: no records"),
        (["--data", "selos.jsonl"], "60 of 60 records refused: record 'c0' (selos.jsonl:1)"),
        (["--data", "selos.jsonl", "--images", "none"], "--images none: no such folder"),
        (["--data", "english.jsonl"], "--language gl: no record is in it; the records name en"),
        (
            ["--data", "mixed.jsonl", "mixed_captions.jsonl", "--images", "images"],
            "mixed_captions.jsonl: its stream mixed_captions has the name of another one",
        ),
        ([*BOTH, "--parallel", "gl.txt", "none"], "--parallel none: no such file"),
        ([*BOTH, "--parallel", "gl.txt", "images"], "--parallel images: no such file"),
        ([*BOTH, "--parallel", "gl.txt", "en.txt"], "gl.txt has 2 lines and en.txt 3; line n"),
        ([*BOTH, "--parallel", "gl.txt", "blank.txt"], "no line has text in both files"),
        ([*BOTH, "--parallel", "gl.txt", "images/0.png"], "images/0.png: not UTF-8 at byte 0"),
        ([*BOTH, "--llm", "images"], "images: not a model"),
        ([*BOTH, "--vision", "images"], "images: not a model"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    backbones: Path, data: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    said = [{"role": "user", "content": "Ola?"}, {"role": "assistant", "content": "Ola."}]
    write(data / "text.jsonl", [{"id": "1", "messages": said}])
    write(data / "odd.jsonl", [{"one": 1, "two": 2}])
    (data / "empty.jsonl").touch()
    for name, lines in (("gl", "un\ndous\n"), ("en", "one\ntwo\nthree\n"), ("blank", "\n \n")):
        (data / f"{name}.txt").write_text(lines)
    english = [caption(n) | {"language": "en", "image": f"images/{n}.png"} for n in range(9)]
    write(data / "english.jsonl", english)
    silent = question(1) | {"conversations": [{"from": "human", "value": "<image>"}, ANSWER]}
    write(data / "mixed.jsonl", [question(n) for n in range(9)] + [silent | {"image": "9.png"}])
    write(data / "mixed_captions.jsonl", [caption(n) for n in range(9)])
    assert new(backbones, *words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not Path("gl").exists()


@pytest.mark.parametrize("code", ["Galician", "g", "GL", "gl_ES", "gl-", "../x", ""])
def test_a_code_that_names_no_language(code: str):
    with pytest.raises(ConfigError, match=r"expected a code of two or three small letters"):
        languages.check(code)


def test_names_of_languages():
    for code in ("gl", "ast", "pt-BR", "zh-Hant-TW"):
        languages.check(code)
    assert [languages.name(code) for code in ("gl", "pt-BR", "xx")] == [
        "Galician", "Portuguese", "xx",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- split


def group(number: int, kind: str = "questions", language: str = "gl") -> split.Group:
    answer = Turn("assistant", ("x",))
    record = Record(str(number), (Turn("user", (IMAGE, "a")), answer), (f"{number}.png",), language)
    return split.group_of(record)._replace(kind=kind)


def test_records_added_later_move_no_others():
    """What was trained is never held out later."""
    before: dict[int, str] = {}
    for count in (60, 300, 800, 2_000, 9_000, 40_000):
        groups = [group(number) for number in range(count)]
        sides = split.Split(groups)
        now = {number: sides.side(group) for number, group in enumerate(groups)}
        assert all(now[number] == "train" for number, side in before.items() if side == "train")
        held = sum(side == "heldout" for side in now.values())
        assert split.FEWEST * 0.1 < held < split.MOST * 1.2
        before = now


def test_shares():
    counts = (60, 499, 500, 999, 1_000, 10_000, 10_001, 400_000)
    assert [split.share(count) for count in counts] == [
        1 / 5, 1 / 5, 1 / 10, 1 / 10, 1 / 20, 1 / 20, 1 / 40, 1 / 1280,
    ]  # fmt: skip


def test_a_picture_is_on_one_side():
    groups = [group(n) for n in range(800)]
    groups += [group(n, "captions", language) for n in range(800) for language in ("gl", "en")]
    groups += [group(n, "captions") for n in range(800, 20_000)]
    sides = split.Split(groups)
    of_picture: dict[int, set[str]] = {}
    for one in groups:
        of_picture.setdefault(one.keys[0], set()).add(sides.side(one))
    assert all(len(found) == 1 for found in of_picture.values())
    held = sum("heldout" in found for found in of_picture.values())
    assert 80 < held < 1200


def test_a_record_with_pictures_of_both_sides_is_left_out():
    groups = [group(n) for n in range(800)]
    sides = split.Split(groups)
    held = next(g for g in groups if sides.side(g) == "heldout")
    trained = next(g for g in groups if sides.side(g) == "train")
    assert sides.side(held._replace(keys=(*held.keys, *trained.keys))) == "both"


@pytest.mark.parametrize(
    ("turns", "images", "kind"),
    [
        ([Turn("user", (IMAGE, "\n")), Turn("assistant", ("Un faro.",))], 1, "captions"),
        ([Turn("user", (IMAGE, "\nQue é?")), Turn("assistant", ("Un faro.",))], 1, "questions"),
        ([Turn("user", ("Que é?",)), Turn("assistant", ("Un faro.",))], 0, "questions"),
        ([], 0, "documents"),
    ],
)
def test_kinds(turns: list[Turn], images: int, kind: str):
    record = Record("1", tuple(turns), ("a.png",) * images, "gl", "" if turns else "Un faro.")
    assert split.kind_of(record) == kind


@pytest.mark.parametrize(
    "turns",
    [
        (Turn("user", (IMAGE, "\nQue é?")), Turn("assistant", ("Un faro.",))),
        (Turn("user", (IMAGE, "\n", IMAGE, "\n", "Que son?")), Turn("assistant", ("Dous.",))),
        (Turn("system", ("Breve.",)), Turn("user", ("Ola", IMAGE)), Turn("assistant", ("Ola",))),
        (Turn("user", (IMAGE, "\nQue é <image>?")), Turn("assistant", ("Unha marca.",))),
    ],
)
def test_a_written_record_is_read_as_it_was(turns: tuple[Turn, ...], tmp_path: Path):
    names = [f"{n}.png" for n in range(sum(turn.parts.count(IMAGE) for turn in turns))]
    record = Record("7", turns, tuple(str(tmp_path / name) for name in names), "gl")
    raw = Columns("llava", {})(written.as_llava(record, names), 0)
    again = read_record(raw, "7", ImageFolder(tmp_path), None, ("gl",))

    def joined(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
        marks = [("\0" if part is IMAGE else str(part)) for turn in turns for part in turn.parts]
        return [("".join(marks), turn.role) for turn in turns]

    assert joined(again.turns) == joined(record.turns) and again.images == record.images


# ----------------------------------------------------------------------------------------- choices


def measured(records: int, tokens: int, images: int = 1) -> Measured:
    lengths = np.array([tokens, tokens + 20, 2 * tokens])
    return Measured(records, lengths, np.full(3, images), lengths // 2)


def test_the_published_values_at_the_published_size():
    shape = choices.shape("align", measured(600_000, 600), 131_072, 576, large=True)
    assert (shape.length.value, shape.image_slots.value, shape.epochs.value) == (2048, 3, 1)
    assert round(shape.rows.value * shape.examples_per_row) in range(250, 260)
    assert choices.rate("align", 8 * 10**9).value == 1e-3
    assert choices.rate("instruct", 8 * 10**9).value == 2e-5


def test_a_small_set_for_a_small_model():
    shape = choices.shape("instruct", measured(785, 40), 512, 16, large=False)
    assert shape.length.value == 256 and shape.image_slots.value == 5
    assert shape.epochs.value == 10 and 300 < shape.steps < 1000
    assert choices.shape("align", measured(785, 300), 512, 16, False).length.value == 512


def test_weights_of_several_languages():
    found = choices.weights(
        {"a": 300, "b": 100, "c": 50}, {"a": "gl", "b": "gl", "c": "en"}, project_language="gl"
    )
    assert {name: choice.value for name, choice in found.items()} == {"a": 0.6, "b": 0.2, "c": 0.2}
    only = choices.weights({"a": 300, "b": 100}, {"a": "gl", "b": "gl"}, project_language="gl")
    assert {name: choice.value for name, choice in only.items()} == {"a": 300, "b": 100}
