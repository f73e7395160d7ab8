"""What who watches a run sees: losses over the last steps by tokens, speed, time left."""

import io

import pytest

from mllm_jax.training.progress import QUIET, WINDOW, Progress, Recent


def line(step: int, loss: float = 2.0, trained: float = 10.0, **more: float):
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 0.5,
        "learning_rate/all": 1e-3,
        "trained_tokens": trained,
        "real_tokens_per_second": 40.0,
        "step_seconds": 0.5,
        "data_wait_share": 0.2,
    } | more


def test_the_smoothed_loss_is_a_mean_over_tokens_not_over_steps():
    recent = Recent()
    recent.add(line(0, loss=1.0, trained=90.0), 0.0)
    recent.add(line(1, loss=3.0, trained=10.0), 0.5)
    assert recent.loss == pytest.approx(1.2)
    recent.add(line(2, loss=0.0, trained=0.0), 1.0)  # a step without a trained token
    assert recent.loss == pytest.approx(1.2)


def test_old_steps_leave_the_window():
    recent = Recent()
    for step in range(WINDOW + 5):
        recent.add(line(step, loss=9.0 if step < 5 else 2.0), float(step))
    assert recent.loss == pytest.approx(2.0)
    assert recent.step_seconds == pytest.approx(1.0)  # with saves and evaluations, not 0.5


def test_language_losses_are_weighted_by_what_each_language_grew():
    """Totals are of the whole run; a resumed one continues from its last line."""
    total, loss = "total_trained/language/eu", "loss/language/eu"
    recent = Recent(line(3, **{total: 100.0}))
    recent.add(line(4, **{total: 130.0, loss: 1.0}), 0.0)
    recent.add(line(5, **{total: 140.0, loss: 5.0}), 0.5)
    recent.add(line(6, **{total: 140.0}), 1.0)  # none of the language in this step
    assert recent.language_losses == pytest.approx({"eu": 2.0})


def test_learning_rates_are_named_where_parts_have_their_own():
    recent = Recent()
    recent.add(line(0), 0.0)
    assert "lr 1.00e-03  grad" in recent.summary()
    own = {"learning_rate/vision": 2e-6, "learning_rate/rest": 1e-3}
    recent.add(line(1, **own), 0.5)
    assert "lr 2.00e-06 vision, 1.00e-03 all+rest  grad" in recent.summary()


def test_a_line_is_due_every_few_steps_and_after_half_a_minute():
    """Steps of 20 seconds: the fourth one comes after QUIET, whatever `log_every` says."""
    ticks = iter([0.0, 20.0, 40.0, 60.0, 80.0])
    output = io.StringIO()
    progress = Progress(100, None, log_every=50, output=output, clock=lambda: next(ticks))
    for step in range(4):
        progress.show(line(step))
    printed = output.getvalue().splitlines()
    assert QUIET == 30 and [words.split()[1] for words in printed] == ["1/100", "3/100"]
    assert printed[1].endswith("this step 2.0000  32 min 20 s left")
    assert "40 tokens/s" in printed[1]
