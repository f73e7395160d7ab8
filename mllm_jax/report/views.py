"""What a report shows, as plain data: collected by `commands/report`, drawn by the other files."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mllm_jax.report.metrics_file import Metrics

Facts = Sequence[tuple[str, str]]  # name, value


class Module(NamedTuple):
    """One of vision, connector, language, and what the stage does to it."""

    name: str
    parameters: int
    trained: int  # of these
    before: str = ""  # fingerprints of the weights; empty where they were not compared
    after: str = ""


class Share(NamedTuple):
    """A stream's, a language's or a task's part of what was read."""

    name: str
    target: float | None  # None: the config gives no share to compare with
    records: float  # shares of all records, tokens, trained tokens
    tokens: float
    trained: float
    count: int  # records


class Stage(NamedTuple):
    """One run: its settings and what its metrics say."""

    name: str
    facts: Facts
    modules: Sequence[Module]
    metrics: Metrics
    measure: str  # what targets are shares of: "records" or "tokens"
    streams: Sequence[Share]
    languages: Sequence[Share]
    samples: Sequence[tuple[str, str]]  # (when, text) of answers written during the run
    tasks: Sequence[Share] = ()  # where streams name theirs


class Group(NamedTuple):
    """The questions of one kind in one language."""

    kind: str
    language: str
    right: int
    count: int
    majority: int  # how many the most frequent true answer alone gets right
    common: str  # that answer


class OtherAnswer(NamedTuple):
    """What another variant answers to the same question."""

    variant: str
    answer: str
    right: bool


class Answer(NamedTuple):
    """A question, the model's answer, and the true one."""

    id: str  # of the record
    language: str
    question: str
    answer: str
    truth: str
    right: bool
    pictures: Sequence[UInt8[np.ndarray, "height width C"] | str]  # or why there is none
    others: Sequence[OtherAnswer] = ()


class Scores(NamedTuple):
    """An evaluation."""

    languages: Mapping[str, Mapping[str, float | None]]  # code -> loss, perplexity
    groups: Sequence[Group]
    kinds: Mapping[str, str]  # kind -> heading
    answers: Sequence[Answer]  # the first of every group
    misses: Sequence[Answer]  # other wrong answers
    count: int  # of all answers
    intervals: Mapping[str, tuple[float, float]]  # code -> 95 % of exact match, from 0 to 1
    # code -> language_fidelity, undecided and identifier_accuracy, identifier_undecided, in percent
    fidelity: Mapping[str, Mapping[str, float]]


class Compared(NamedTuple):
    """Two stages on the same questions of a language; scores and differences in percent."""

    before: str
    after: str
    language: str
    count: int
    score_before: float
    score_after: float
    interval: tuple[float, float] | None  # 95 %, of after less before; None: not known
    before_only: int  # questions that this one alone answers
    after_only: int
    p: float  # McNemar, after Holm's correction
    smallest: float | None  # difference that so many questions show; None: the two never differ


class Variant(NamedTuple):
    """A finished model of a recipe that is a tree."""

    name: str
    stages: Sequence[str]  # from the first one to its own
    scores: Scores | None  # None: not evaluated yet


class Report(NamedTuple):
    """The whole page."""

    title: str
    about: str
    stages: Sequence[Stage]
    scores: Scores | None
    facts: Facts  # time, devices, versions
    seconds: float
    missing: Sequence[str]  # what is not there yet, one line each
    variants: Sequence[Variant] = ()  # of a tree; `scores` is None then
    compared: Sequence[Compared] = ()  # the evaluated stage with earlier ones
