"""Opens the mixture of a stage without training: its packed rows, in the order of the run."""

from mllm_jax.config.stage import Config
from mllm_jax.data.chat.tokenizer import load_tokenizer
from mllm_jax.data.dataset import RowDataset, row_dataset
from mllm_jax.data.loader import Loader
from mllm_jax.training.run_folder import tokenizer_folder


def open_mixture(config: Config) -> RowDataset:
    """The packed rows that `train(config)` trains on, as a `grain.MapDataset`.

        rows = mllm_jax.open_mixture(mllm_jax.load_config("align.yaml"))
        rows[17].tokens                                  # of shape [data.length]
        batches = rows.batch(8).to_iter_dataset()        # or .map, .slice, .shuffle, .mp_prefetch

    Row i is a function of config and i alone, whatever was read before; step s of the run trains on
    the rows from s * data.rows on. A row is a `Row` of numpy arrays, the fields of
    `mllm_jax.batch.Batch` without the batch dimension; `.batch` stacks them. Pixels are uint8
    before normalisation. Indexes of the streams that are missing are built.

    Args:
        config: the stage. `init` gives the tokenizer, `train` the number of rows; `data.workers`,
            `data.threads` and `data.prefetch` have no effect, since Grain does the reading.

    Returns:
        A dataset of train.steps * data.rows rows, or of all rows of train.epochs. Grain's datasets
        go round: `rows[len(rows)]` is row 0 again, `rows[-1]` the last one.

    Raises:
        ConfigError: data that `train` would refuse.
    """
    tokenizer = load_tokenizer(tokenizer_folder(config.init))
    pairs = config.optimizer.pairs.acts
    loader = Loader(config.data, config.model, tokenizer, config.seed, pairs=pairs)
    steps = config.train.steps or loader.steps(config.train.epochs or 0)
    return row_dataset(loader, steps, config.data.rows)
