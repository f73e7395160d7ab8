"""Counts by hand, lines, the cut of metrics.jsonl on resume, what a reader sees."""

import io
import json

import numpy as np
import pytest

from mllm_jax.batch import Contents
from mllm_jax.common.errors import ConfigError
from mllm_jax.training import metrics
from mllm_jax.training.writer import MetricsWriter, cut

# two rows of 8: examples aaa|bb|. and c with two images
CONTENTS = Contents(
    records=["captions/a", "chat/b", "chat/c"],
    streams=np.array([0, 1, 1]),
    languages=np.array([0, 0, 1]),
    tokens=np.array([3, 2, 7]),
    images=np.array([0, 0, 2]),
    tiles=np.array([0, 0, 4]),
    positions=16,
    slots=5,
)


def numbers(**changes):
    """What a train step returns."""
    return {
        "loss": np.float32(2.0),
        "loss_sum": np.float32(8.0),
        "trained_tokens": np.float32(4.0),
        "stream_loss_sum": np.array([1.0, 7.0], np.float32),
        "stream_tokens": np.array([1.0, 3.0], np.float32),
        "language_loss_sum": np.array([4.0, 4.0, 0.0], np.float32),
        "language_tokens": np.array([2.0, 2.0, 0.0], np.float32),
        "grad_norm": np.float32(0.5),
        "update_norm": np.float32(0.01),
        "param_norm": np.float32(10.0),
        "finite": np.float32(1.0),
        "learning_rate/connector": np.float32(1e-3),
    } | changes


def meter(**kwargs):
    return metrics.Meter(["captions", "chat"], ["eu", "en", "it"], **kwargs)


def test_counts_by_hand():
    counts = meter().count(CONTENTS)
    assert (counts.positions, counts.tokens, counts.images) == (16, 12, 2)
    assert (counts.slots, counts.tiles) == (5, 4)
    assert counts.mixture["records"]["stream"].tolist() == [1, 2]
    assert counts.mixture["records"]["language"].tolist() == [2, 1, 0]
    assert counts.mixture["tokens"]["language"].sum() == 12


def test_line_by_hand():
    one = meter(flops=lambda tiles, targets: 0.5e12 * tiles + 0.5e12 * targets, peak=10e12)
    line = one.line(7, numbers(), one.count(CONTENTS), metrics.StepTime(2.0, 0.5))
    wanted = {
        "step": 7,
        "loss": 2.0,
        "loss/stream/captions": 1.0,
        "loss/stream/chat": 7 / 3,
        "loss/language/eu": 2.0,
        "loss/language/en": 2.0,
        "grad_norm": 0.5,
        "update_norm": 0.01,
        "trained_tokens": 4.0,
        "trained_tokens_per_second": 2.0,
        "real_tokens_per_second": 6.0,
        "images_per_second": 1.0,
        "step_seconds": 2.0,
        "data_wait_share": 0.25,
        "padding_share": 0.25,
        "unused_slot_share": 0.2,
        "teraflops_per_second": 2.0,
        "mfu": 0.2,
        "learning_rate/connector": 1e-3,
        "share_records/stream/chat": 2 / 3,
        "share_records/language/eu": 2 / 3,
        "share_trained/stream/chat": 0.75,
        "share_trained/language/it": 0.0,
        "total_trained/stream/chat": 3.0,
    }
    assert {name: line[name] for name in wanted} == pytest.approx(wanted)
    assert "loss/language/it" not in line  # no trained token, no loss
    json.dumps(line, allow_nan=False)


def test_a_mean_over_no_pairs_is_not_in_the_line():
    """The regularizer's numbers; `pair_kl` needs equal answers, the others a pair."""
    names = "pair_kl", "pair_contrastive", "pair_cosine", "pairs", "pairs_unequal"
    some = dict(zip(names, (0.5, 1.5, 0.25, 3.0, 1.0), strict=True))
    one, step_time = meter(), metrics.StepTime(1.0, 0.0)
    for absent, pairs, tokens in (((), 3, 7), (names[:1], 3, 0), (names[:3], 0, 0)):
        got = numbers(**some | {"pairs": pairs, "pair_tokens": tokens, "pair_kl_sum": 1.0})
        line = one.line(0, got, one.count(CONTENTS), step_time)
        expected = {k: v for k, v in (some | {"pairs": pairs}).items() if k not in absent}
        assert {k: v for k, v in line.items() if k.startswith("pair")} == expected
    plain = one.line(0, numbers(), one.count(CONTENTS), step_time)
    assert not any(name.startswith("pair") for name in plain)


def test_tasks_are_sums_of_their_streams():
    """Loss, shares and totals; nothing for a stream without a task, no key where none has one."""
    one = meter(tasks=["ep", None])
    line = one.line(0, numbers(), one.count(CONTENTS), metrics.StepTime(1.0, 0.0))
    tasks = {name: value for name, value in line.items() if "/task/" in name}
    assert tasks == pytest.approx(
        {
            "loss/task/ep": 1.0,
            "share_records/task/ep": 1 / 3,
            "share_tokens/task/ep": 3 / 12,
            "share_trained/task/ep": 1 / 4,
            "total_records/task/ep": 1.0,
            "total_tokens/task/ep": 3.0,
            "total_trained/task/ep": 1.0,
        }
    )
    both = meter(tasks=["ep", "ep"])
    line = both.line(0, numbers(), both.count(CONTENTS), metrics.StepTime(1.0, 0.0))
    assert line["loss/task/ep"] == line["loss"] == 2.0
    assert line["share_trained/task/ep"] == 1.0
    none = meter(tasks=[None, None])
    line = none.line(0, numbers(), none.count(CONTENTS), metrics.StepTime(1.0, 0.0))
    assert not [name for name in line if "task" in name]


def test_tasks_resume_from_their_totals():
    step_time, straight = metrics.StepTime(1.0, 0.0), meter(tasks=["a", "b"])
    lines = [straight.line(n, numbers(), straight.count(CONTENTS), step_time) for n in range(3)]
    resumed = meter(tasks=["a", "b"], last=lines[1])
    assert resumed.line(2, numbers(), resumed.count(CONTENTS), step_time) == lines[2]


def test_a_step_without_a_trained_token_has_shares():
    nothing = {"stream_tokens": np.zeros(2), "language_tokens": np.zeros(3)}
    one = meter()
    line = one.line(0, numbers(**nothing), one.count(CONTENTS), metrics.StepTime(1.0, 0.0))
    assert line["share_trained/stream/chat"] == 0 and line["share_records/stream/chat"] == 2 / 3


def test_shares_are_cumulative_and_go_on_after_a_resume():
    straight, step_time = meter(), metrics.StepTime(1.0, 0.0)
    lines = [straight.line(n, numbers(), straight.count(CONTENTS), step_time) for n in range(3)]
    assert lines[2]["total_records/stream/chat"] == 6
    resumed = meter(last=json.loads(json.dumps(lines[1])))
    assert resumed.line(2, numbers(), resumed.count(CONTENTS), step_time) == lines[2]


def test_watch():
    ticks = iter([0.0, 1.0, 3.0, 10.0, 11.0, 12.0, 20.0])
    watch = metrics.Watch(lambda: next(ticks))
    with watch.waiting():
        pass
    assert watch.restart() == (10.0, 2.0)
    with watch.waiting():
        pass
    assert watch.restart() == (10.0, 1.0)


def test_the_run_ends_at_a_loss_that_is_not_finite():
    metrics.require_finite(3, numbers(), lambda: None)
    bad = numbers(finite=np.float32(0), loss=np.float32("nan"))
    with pytest.raises(metrics.Diverged, match=r"step 12: loss nan.*checkpoint: runs/x/10"):
        metrics.require_finite(12, bad, lambda: "runs/x/10")
    with pytest.raises(metrics.Diverged, match="no checkpoint was saved"):
        metrics.require_finite(12, bad, lambda: None)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def write(folder, steps, resume=None, output=None, total=10, loss=2.0):
    """A run that writes these steps; returns what it printed."""
    output = io.StringIO() if output is None else output
    with MetricsWriter(folder, total, resume, log_every=4, output=output) as writer:
        one = meter(last=writer.last)
        for step in steps:
            got = numbers(loss=np.float32(loss))
            writer.write(one.line(step, got, one.count(CONTENTS), metrics.StepTime(0.5, 0.1)))
    return output.getvalue()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_stands_once_after_two_resumes(tmp_path):
    write(tmp_path, range(7))
    write(tmp_path, range(4, 9), resume=4)
    write(tmp_path, range(6, 10), resume=6)
    got = lines(tmp_path)
    assert [line["step"] for line in got] == list(range(10))
    assert [line["total_records/stream/chat"] for line in got] == [2.0 * n for n in range(1, 11)]
    events = b"".join(path.read_bytes() for path in tmp_path.glob("tensorboard/events*"))
    assert b"share_records/stream/chat" in events and b"total_" not in events


def test_resume_from_nothing_begins_anew(tmp_path):
    write(tmp_path, range(3))
    write(tmp_path, range(2), resume=0)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


def test_a_torn_last_line_is_cut(tmp_path):
    write(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo')
    last = cut(path, 10)
    assert last is not None
    assert last["step"] == 2
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]
    assert [p.name for p in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


@pytest.mark.parametrize("junk", ["not json", "[1, 2]", '{"loss": 1.0}', ""])
def test_an_unreadable_line_is_refused_and_nothing_is_lost(tmp_path, junk):
    write(tmp_path, range(2))
    path = tmp_path / "metrics.jsonl"
    before = path.read_text() + junk + "\n" + '{"step": 2}\n'
    path.write_text(before)
    with pytest.raises(ConfigError, match=r"metrics.jsonl:3: not a line of metrics"):
        cut(path, 1)
    assert path.read_text() == before


def test_a_fresh_run_never_writes_over_another(tmp_path):
    write(tmp_path, range(2))
    with pytest.raises(ConfigError, match="exists"):
        write(tmp_path, range(2))
    assert len(lines(tmp_path)) == 2


def test_not_a_number_is_null_in_json(tmp_path):
    write(tmp_path, range(1), loss=np.nan)
    assert lines(tmp_path)[0]["loss"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_plain_lines_when_piped(tmp_path):
    printed = write(tmp_path, range(10)).splitlines()
    assert [line.split()[1] for line in printed] == ["1/10", "5/10", "9/10", "10/10"]
    assert printed[0].startswith(
        "step 1/10  loss 2.0000  eu 2.000  en 2.000  lr 1.00e-03  grad 0.500"
    )
    assert "24 tokens/s" in printed[0]
    assert "20% waiting" in printed[0]


def test_a_bar_on_a_terminal(tmp_path):
    printed = write(tmp_path, range(4, 10), resume=4, output=Terminal())
    assert "10/10" in printed
    assert "loss 2.0000" in printed
    assert "step 5/10" not in printed
