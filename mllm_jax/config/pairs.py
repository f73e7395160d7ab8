"""Defines the section `optimizer.pairs`: a regularizer over the same meaning in two languages.

    loss + kl x symmetric KL + contrastive x InfoNCE        (docs/lrm.md, training/pairs)

Not from the LRM-LLaVA paper, whose "cross-modal regularizer" is its three tasks and no term of the
loss. Pairs are those of the streams that name a field `pairs`.
"""

from dataclasses import dataclass
from typing import Annotated

from mllm_jax.common.ranges import Range, Section

TermWeight = Annotated[float, Range("[0, 1_000]")]


@dataclass(frozen=True)
class PairsConfig(Section, at="optimizer.pairs"):
    """Regularizer over paired records; ours, not from LRM-LLaVA's paper. All weights 0: none."""

    kl: TermWeight = 0.0
    """Weight of the symmetric KL divergence between the two predictions of the same answer.

    A mean over the tokens of answers that both records of a pair have, token for token.
    """
    contrastive: TermWeight = 0.0
    """Weight of InfoNCE between the mean hidden states of the two questions.

    The other pairs of the step's whole batch are the negatives. Costs a second forward pass.
    """
    temperature: Annotated[float, Range("[0.001, 100]")] = 0.05
    """Divides the cosines in InfoNCE."""

    @property
    def acts(self) -> bool:
        """Whether the loss has one of the two terms; otherwise the step is that without them."""
        return self.kl > 0 or self.contrastive > 0
