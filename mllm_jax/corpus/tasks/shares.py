"""Gives every (task, language) its weight in a mixture: non-English = ratio x English.

English has weight 1, in MVQA. The others share `ratio`, first by language and then by task:

    ratio 1, nine languages, three tasks   English 50 %, a language 5.556 %, a task of it 1.852 %

What becomes of the share of a task that is left out is not published: `refill` gives it to the
other tasks of its language, otherwise there are fewer records. English stays in any case: the
paper's model without any of the tasks is one that was trained on English.
"""

from collections.abc import Collection, Sequence

from mllm_jax.common.errors import require
from mllm_jax.corpus.tasks.build import PIVOT, forms


def task_weights(
    tasks: Sequence[str],
    languages: Sequence[str],
    ratio: float = 1.0,
    without: Collection[str] = (),
    refill: bool = False,
) -> dict[tuple[str, str], float]:
    """Weights of streams by (task, language).

    Args:
        tasks: of the stage, all of them.
        languages: with English, unless there is no other.
        ratio: volume of all other languages together, as a multiple of English's.
        without: tasks that an ablation leaves out, in the languages other than English.
        refill: whether the tasks that remain take their shares.

    Raises:
        ConfigError: English is not among the languages.
    """
    joined = ", ".join(languages)
    require(PIVOT in languages, f"languages {joined}: shares are relative to {PIVOT}; add it")
    others = [code for code in languages if code != PIVOT]
    remaining = [task for task in tasks if task not in without]
    count = len(remaining) if refill else len(tasks)
    weights = {(task, PIVOT): 1.0 for task in tasks if forms(task, PIVOT)}
    return weights | {
        (task, code): ratio / len(others) / count for task in remaining for code in others
    }
