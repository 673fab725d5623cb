"""DP-SGD: every record's gradient clipped, Gaussian noise added, batches drawn record by record.

The guarantee is for the weights, and so for everything that is computed from them. What a training tells beside them is
not covered: the loss and accuracy on members in its history, and the figures of an audit, which are there to attack it.
The noise comes from the seed of the training, so that a training can be repeated: whoever knows the seed can subtract
it. A model that is to be released needs a seed that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from memberscope.defenses.accountant import Guarantee, guarantee, noise_for
from memberscope.defenses.base import Card, GradientDefense, Step
from memberscope.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memberscope.defenses.per_record import ClippedSum
    from memberscope.training.recipe import Recipe


class DpSgd(GradientDefense):
    """Differentially private training (Abadi et al. 2016)."""

    name = "dp_sgd"
    title = "differential privacy: clip each record's gradient to dp_clip and add noise (or give dp_noise itself)"
    settings = ("dp_epsilon", "dp_noise", "dp_delta", "dp_clip", "dp_microbatch")
    per_record = True
    poisson = True
    blind_inputs = True
    full_precision = True
    untimed: ClassVar[Mapping[str, Any]] = {"dp_epsilon": None, "dp_noise": 1.0}
    unstackable = "DP-SGD draws batches of different sizes"
    clashes: ClassVar[Mapping[str, str]] = {
        "clip_norm": "DP-SGD clips the gradient of each record; clipping their noisy sum again only biases it",
        "selena": "the sub-models that teach are not trained with noise, so that no epsilon would hold",
        "dmp": "the teacher is not trained with noise, so that no epsilon would hold",
        "adversarial": "the inference model is trained on members without noise, so that no epsilon would hold",
        "memguard": "its guard is trained on the answers to members without noise, so that no epsilon would hold",
    }
    card = Card(
        "Abadi et al. 2016 (CCS), algorithm 1; Poisson sampling as in Mironov, Talwar & Zhang 2019",
        "(sum over the batch of g * min(1, dp_clip / |g|) + N(0, (dp_noise * dp_clip)^2)) / expected batch size",
        "1.3 to 1.7 times the time of an epoch in float32, 2.6 to 3.1 times that in bf16 (SimpleCNN, one CPU thread)",
        "the guarantee is for one record: duplicates share it; BatchNorm is replaced by GroupNorm; inputs are not "
        "normalised by members; the history's figures on members are not covered",
    )

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._noise: float | None = recipe.dp_noise
        self._clipped: ClippedSum | None = None

    @classmethod
    def active(cls, recipe: Recipe) -> bool:
        """On with a target epsilon, or with a noise (0 too: clipping alone)."""
        return recipe.dp_epsilon is not None or recipe.dp_noise is not None

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse both an epsilon and a noise, and bf16."""
        if recipe.dp_epsilon is not None and recipe.dp_noise is not None:
            raise ConfigError("dp_epsilon and dp_noise were both given", "one follows from the other: leave one out")
        if recipe.precision == "bf16":
            raise ConfigError(
                "DP-SGD and bf16 do not go together: a norm with 8 bits is no bound on a record's influence",
                "leave the precision out",
            )

    def module(self, module: nn.Module) -> nn.Module:
        """Put group normalisation in place of batch normalisation, which mixes the records of a batch."""
        from memberscope.defenses.group_norm import without_batch_norm

        return without_batch_norm(module)

    def begin(self, records: int, steps: int, epochs: int) -> None:
        """Find the noise of a target epsilon: with so many records, steps an epoch, and epochs."""
        if self.recipe.dp_delta * records >= 1:
            raise ConfigError(
                f"dp_delta = {self.recipe.dp_delta:g} is no small probability for {records:,} members",
                f"below 1 / members: a delta of {1 / records:.2g} lets a mechanism publish one of them outright",
            )
        if self.recipe.dp_epsilon is not None:
            self._noise = noise_for(self.recipe.dp_epsilon, 1 / steps, epochs * steps, self.recipe.dp_delta)

    @property
    def noise(self) -> float:
        """The noise multiplier in force."""
        assert self._noise is not None, "begin() finds it"
        return self._noise

    def about(self) -> dict[str, str]:
        """What a checkpoint must share: another accountant could have found another noise."""
        return {"noise multiplier": repr(self.noise)}

    def gradient(self, step: Step) -> Tensor:
        """Algorithm 1, lines 4 to 7; the sum is divided by the expected batch size, for the true one is secret."""
        import torch

        from memberscope.defenses.per_record import ClippedSum

        if self._clipped is None or self._clipped.module is not step.module:
            self._clipped = ClippedSum(step.module, self.recipe.dp_microbatch)
        total, told = self._clipped.sum(step.x, step.targets, step.losses, self.recipe.dp_clip)
        spread = self.noise * self.recipe.dp_clip
        for name, parameter in step.module.named_parameters():
            if name not in total:
                continue
            gradient = total[name]
            if spread:
                drawn = torch.empty(gradient.shape, device=gradient.device)
                gradient = gradient + drawn.normal_(0.0, spread, generator=step.noise)
            parameter.grad = torch.empty_like(parameter).copy_(gradient / step.expected)
        return told.mean() if len(told) else told.new_zeros(())

    def guarantee(self, steps: int, epochs: int) -> Guarantee:
        """What `epochs` of `steps` steps each guarantee."""
        return guarantee(
            noise=self.noise,
            clip=self.recipe.dp_clip,
            sample_rate=1 / steps,
            steps=epochs * steps,
            delta=self.recipe.dp_delta,
        )

    def privacy(self, steps: int, epochs: int) -> dict[str, Any] | None:
        """The guarantee; None before the first epoch: a federation, which drives the epochs, accounts for them."""
        return self.guarantee(steps, epochs).to_dict() if epochs else None
