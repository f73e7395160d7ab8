"""Any step's rows as the model gets them, on a page for eyes. Reads no weights.

config -> tokenizer -> loader -> the batch of step N, its records, a sample of the mixture -> page

The order is a pure function of (config, seed, step): the page of a step that a run took, or will
take, is made without the run.
"""

from pathlib import Path

import numpy as np

from mllm_jax.batch import Batch
from mllm_jax.common.errors import require
from mllm_jax.common.folders import new_folder
from mllm_jax.config.stage import Config
from mllm_jax.data.chat.token_text import TokenTexts
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.loader import HostBatch, Loader
from mllm_jax.report.inspect_page import StepView, inspect_page
from mllm_jax.report.mixture import Sample, Target
from mllm_jax.report.rows import ImageView, Origin, RowView
from mllm_jax.training.run_folder import tokenizer_folder

# behind a run's end, rows are planned as far as this: some seconds' work
MOST_ROWS = 10**5
SAMPLE = 16  # steps, from the shown one on, whose examples are counted for the shares


def run(config: Config, out: str | Path, step: int = 0, rows: int = 4) -> Path:
    """Writes OUT/index.html about one step.

    Args:
        config: the stage.
        out: a folder that does not exist yet, or is empty.
        step: number of the step, from 0; it may be behind an end by `train.steps`, as far as
            MOST_ROWS rows go.
        rows: how many of its rows are shown, the first ones.

    Returns:
        The page.

    Raises:
        ConfigError: an impossible step, OUT is in use, or data that `train` would refuse.
    """
    require(step >= 0, f"--step {step}: steps are counted from 0")
    require(rows > 0, f"--rows {rows} must be positive")
    data, steps = config.data, config.train.steps
    if steps is not None:
        most = max(steps, MOST_ROWS // data.rows)
        require(
            step < most,
            f"--step {step}: the run has {steps} steps (train.steps), and steps behind its end are "
            f"planned up to {most - 1}",
        )
    with new_folder(out) as folder:
        tokenizer = load_tokenizer(tokenizer_folder(config.init))
        loader = Loader(data, config.model, tokenizer, config.seed)
        if config.train.epochs is not None:
            steps = loader.steps(config.train.epochs)
            require(
                step < steps,
                f"--step {step}: the run has {steps} steps (train.epochs={config.train.epochs})",
            )
        host = loader.batch(step)
        view = StepView(
            run=Path(config.out).name,
            step=step,
            steps=steps,
            batch=host.batch,
            images=int(host.contents.images.sum()),
            tiles=int(host.contents.tiles.sum()),
            rows=_rows(config, loader, host, TokenTexts(tokenizer), step)[:rows],
            sizes={stream.name: stream.sizes for stream in loader.streams},
            sample=_sample(config, loader, step),
            target=Target(loader.weights(step), data.languages, data.length, data.image_slots),
            report=loader.report(),
        )
        (folder / "index.html").write_text(inspect_page(view), encoding="utf-8")
    page = Path(out) / "index.html"
    print(f"step {step} of {config.out}: {page}")
    return page


def _rows(
    config: Config, loader: Loader, host: HostBatch, texts: TokenTexts, step: int
) -> list[RowView]:
    """The rows of a step with the origins of their segments."""
    batch, records, views = host.batch, iter(host.records), []
    used = np.union1d(batch.tokens, batch.targets).tolist()
    token_texts = {token: texts[token] for token in used}
    control = frozenset(token for token in used if texts.is_control(token))
    for n, refs in enumerate(loader.rows(step)):
        origins, images = [], list[ImageView]()
        for segment, ref in enumerate(refs, start=1):
            stream = loader.streams[ref.stream]
            record = next(records).removeprefix(f"{stream.name}/")
            language = config.data.languages[_language(batch, n, segment)]
            origins.append(Origin(stream.name, language, record, ref.epoch, ref.position))
            for layout in stream.image_layouts(ref.record):
                first = images[-1].first + images[-1].tiles if images else 0
                images.append(ImageView(first, layout.tiles))
        view = RowView(
            number=n,
            tokens=np.asarray(batch.tokens[n]),
            targets=np.asarray(batch.targets[n]),
            weights=np.asarray(batch.weights[n]),
            segments=np.asarray(batch.segments[n]),
            positions=np.asarray(batch.positions[n]),
            image_index=np.asarray(batch.image_index[n]),
            pixels=np.asarray(batch.pixels[n]),
            patches=config.model.patches,
            images=images,
            origins=origins,
            texts=token_texts,
            control=control,
        )
        views.append(view)
    return views


def _language(batch: Batch, row: int, segment: int) -> int:
    """Number of the language of a segment."""
    return int(batch.languages[row][int(np.argmax(batch.segments[row] == segment))])


def _sample(config: Config, loader: Loader, step: int) -> Sample:
    """The examples of the next steps; no image is decoded for it."""
    steps = range(step, step + SAMPLE)
    refs = [ref for number in steps for row in loader.rows(number) for ref in row]
    counts: dict[tuple[int, int], tuple[int, int]] = {}  # small data sets come around often
    for stream, record in {(ref.stream, ref.record) for ref in refs}:
        weights = loader.streams[stream].tokens(record).weights
        # the first token is nobody's target
        trained = int((weights[1:] > 0).sum())
        counts[stream, record] = loader.streams[stream].language(record), trained
    languages, targets = zip(*(counts[ref.stream, ref.record] for ref in refs), strict=True)
    return Sample(
        steps=steps,
        rows=len(steps) * config.data.rows,
        streams=np.array([ref.stream for ref in refs], np.int64),
        languages=np.array(languages, np.int64),
        tokens=np.array([loader.streams[r.stream].sizes[r.record] for r in refs], np.int64),
        trained=np.array(targets, np.int64),
        tiles=np.array([loader.streams[r.stream].tiles[r.record] for r in refs], np.int64),
    )
