"""lm-evaluation-harness itself with our model: its scores are ours, its numbers transformers'."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mllm_jax.common.errors import ConfigError
from mllm_jax.evaluation.harness import documents, task_files
from tests.support import harness_data

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # those of other people's packages
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason="needs lm-eval: pip install '.[lm-eval]' (docs/harnesses.md)",
    ),
]
PAIRS = [
    ("Zenbat itsasontzi daude portuan?", " Hiru txiki eta bat handia."),
    ("Que hai na mesa? ", "Un prato de peixe"),
    ("", "De que color"),
    ("Who is standing beside the red bicycle? " * 6, "An old woman."),
    ("Mendi gainean\n\n", "elurra"),
    ("a", " b"),
    ("a", " c"),
    ("Mendi gai", "nean elurra dago"),
]


@pytest.fixture(scope="module")
def ours(oracle) -> Any:
    from mllm_jax.evaluation.harness.lm_eval_model import MllmJax

    return MllmJax(oracle / "llama31")


@pytest.fixture(scope="module")
def theirs(oracle) -> Any:
    """lm-eval's own model of the same folder, by transformers."""
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    folder = str(oracle / "llama31")
    return HFLM(folder, device="cpu", dtype="float32", batch_size=4, add_bos_token=True)


def requests(kind: str, *arguments: tuple) -> list[Any]:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

    return [Instance(kind, {}, one, n, metadata=("tiny", n, 1)) for n, one in enumerate(arguments)]


def test_log_likelihoods_are_those_of_lm_evals_own_model(ours, theirs):
    asked = requests("loglikelihood", *PAIRS)
    pairs = list(zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True))
    for n, ((found, greedy), (expected, expected_greedy)) in enumerate(pairs):
        # lm-eval cuts a word's context from the whole by its number of tokens
        inside = PAIRS[n][0] == "Mendi gai"
        assert found == pytest.approx(expected, abs=1e-4) or inside
        assert greedy is expected_greedy or inside


def test_rolling_windows_are_those_of_lm_evals_own_model(ours, theirs, monkeypatch):
    """Short texts, and one of three windows."""
    opened = ours._opened
    short = dataclasses.replace(opened.config.language, max_length=64)
    monkeypatch.setattr(opened, "config", dataclasses.replace(opened.config, language=short))
    monkeypatch.setattr(theirs, "_max_length", 64)
    monkeypatch.setattr(theirs, "add_bos_token", False)  # it would score one as part of the text
    texts = [("Zenbat itsasontzi daude?",), ("Hiru txiki, bat handia. " * 20,), ("a",)]
    asked = requests("loglikelihood_rolling", *texts)
    found, expected = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked)
    assert found == pytest.approx(expected, abs=1e-3)
    assert len(ours._windows(*texts[1])) > 2


def test_greedy_answers_are_those_of_lm_evals_own_model(ours, theirs):
    """With stop strings of one token and of several; in batches and alone."""
    ends = [[], ["\n"], [" a"], ["e", "zzz"]]
    asked = requests(
        "generate_until",
        *(
            (context, {"until": until, "max_gen_toks": 9, "do_sample": False})
            for context, _ in PAIRS
            if context
            for until in ends
        ),
    )
    answers = ours.generate_until(asked)
    assert answers == theirs.generate_until(asked)
    assert answers[:3] == [ours.generate_until([one])[0] for one in asked[:3]]
    assert len(set(map(len, answers))) > 2


def test_draws_differ_by_request_and_repeat_by_seed(oracle):
    from mllm_jax.evaluation.harness.lm_eval_model import MllmJax

    arguments = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = requests("generate_until", *[("Zer da hau?", arguments)] * 3)
    first = MllmJax(oracle / "llama31", seed=1).generate_until(asked)
    assert len(set(first)) == 3
    assert MllmJax(oracle / "llama31", batch_size=2, seed=1).generate_until(asked) == first


def test_a_conversation_is_the_folders_own(ours):
    history = [{"role": "user", "content": "Zer da?"}]
    text = ours.apply_chat_template(history)
    opened = ours._opened
    from mllm_jax.data.records.parse import user_turn

    expected = opened.prompt([user_turn("Zer da?")], 1).tokens.tolist()
    assert opened.plain(text, 1).tokens.tolist() == expected
    history.append({"role": "assistant", "content": "Katu"})
    assert ours.apply_chat_template(history, add_generation_prompt=False).endswith("Katu")
    assert ours.chat_template(True) == opened.template and ours.chat_template(False) == ""
    assert "/" not in ours.tokenizer_name
    assert (ours.rank, ours.world_size) == (0, 1)


def test_a_task_of_ours_scores_as_evaluate_does(ours, oracle, tmp_path, monkeypatch):
    """Numbers and log-likelihoods on eight devices are those of the command on one."""
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    root = harness_data.make(tmp_path / "data")
    monkeypatch.setenv(documents.VARIABLE, str(root))
    documents.asked.cache_clear()
    manager = TaskManager(include_path=str(task_files.FOLDER / "lm_eval"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=ours, tasks=["mllm_jax_xstorycloze_eu"], task_manager=manager, bootstrap_iters=0
    )
    scores, lines = harness_data.evaluated(
        oracle / "llama31", "xstorycloze_eu", root, tmp_path / "out"
    )
    results = found["results"]["mllm_jax_xstorycloze_eu"]
    for name in ("acc", "acc_norm"):
        assert 100 * results[f"{name},none"] == pytest.approx(scores[name])
    logged = sorted(found["samples"]["mllm_jax_xstorycloze_eu"], key=lambda one: one["doc_id"])
    for sample, line in zip(logged, lines, strict=True):
        values = [one[0] for one in sample["filtered_resps"]]
        assert values == pytest.approx(line["log_likelihoods"], abs=1e-4)


def test_it_is_found_by_its_name():
    """By the command that docs/harnesses.md names, which imports our module first."""
    from lm_eval.api.registry import get_model  # pyright: ignore[reportMissingImports]

    from mllm_jax.evaluation.harness.lm_eval_model import MllmJax

    assert get_model("mllm_jax") is MllmJax


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "auto"}, "batch_size='auto' is not a number of 1 or more"),
        ({"batch_size": 0}, "batch_size=0 is not a number of 1 or more"),
        ({"max_batch_size": 8}, "max_batch_size=8: give batch_size instead"),
    ],
)
def test_arguments_that_are_refused(oracle, arguments, message):
    from mllm_jax.evaluation.harness.lm_eval_model import MllmJax

    with pytest.raises(ConfigError, match=message):
        MllmJax(oracle / "llama31", **arguments)


def test_requests_that_are_refused(ours):
    asked = requests("generate_until", ("Zer?", {"until": [], "top_q": 1}))
    with pytest.raises(ConfigError, match="task tiny: generation argument 'top_q'=1 is not known"):
        ours.generate_until(asked)
    with pytest.raises(ConfigError, match="task tiny: the continuation is empty"):
        ours.loglikelihood(requests("loglikelihood", ("Zer?", "")))
    limit = ours._opened.config.language.max_length
    with pytest.raises(ConfigError, match=f"task tiny: the prompt has .* max_length={limit}"):
        ours.generate_until(requests("generate_until", ("urdina " * limit, {"until": []})))


def test_the_folder_of_tasks_is_in_the_package():
    assert Path(task_files.FOLDER, "lm_eval", "belebele_it.yaml").is_file()
