"""Adversarial regularisation: an inference model is trained beside the classifier, which learns to deceive it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from memberscope.defenses.base import Attached, Card, LossDefense

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from memberscope.training.recipe import Recipe

_RATE = 1e-3
_HIDDEN = (256, 64)


class Adversarial(LossDefense):
    """Min-max training against an inference model (Nasr, Shokri & Houmansadr 2018)."""

    name = "adversarial"
    title = "add this weight times the gain of an inference model, which tells members from validation records"
    settings = ("adversarial",)
    per_record = False
    soft_targets = False
    needs_validation = True
    unstackable = "an inference model is trained beside each"
    untimed: ClassVar[Mapping[str, Any]] = {"adversarial": 0.0}
    card = Card(
        "Nasr, Shokri & Houmansadr 2018 (CCS), algorithm 1, the gain as in their released code",
        "CE + adversarial * (mean over members of h(p, y) - 1/2), h trained in each step to tell members from others",
        "1.4 times the time of an epoch; needs validation records, which nobody then may call a population",
        "protects from attacks like its own inference model: per-record attacks with reference models hardly notice it",
    )

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._with: Attached | None = None

    @classmethod
    def work(cls, recipe: Recipe) -> float:
        """A forward pass more, of as many validation records."""
        del recipe
        return 1.5

    def attach(self, attached: Attached) -> None:
        """Make the inference model: from probabilities and one-hot class to the logit of membership."""
        import torch
        from torch import nn

        with torch.random.fork_rng([]):
            torch.manual_seed(attached.seed)
            self._model: nn.Module = nn.Sequential(
                nn.Linear(2 * attached.n_classes, _HIDDEN[0]),
                nn.ReLU(),
                nn.Linear(*_HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN[1], 1),
            ).to(attached.device)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=_RATE)
        self._with = attached

    def epoch(self, rng: np.random.Generator) -> None:
        """Validation records are drawn by this generator."""
        self._rng = rng

    def losses(self, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """One step of the inference model, then the classifier's loss: a scalar."""
        import torch
        from torch.nn import functional

        del epoch
        assert self._with is not None, "attach() comes first"
        with torch.no_grad():
            others, theirs = self._with.reference(len(logits), self._rng)
            seen = torch.cat([self._input(logits.detach(), targets), self._input(others, theirs)])
        truth = torch.zeros(len(seen), device=logits.device)
        truth[: len(logits)] = 1
        self._optimizer.zero_grad(set_to_none=True)
        functional.binary_cross_entropy_with_logits(self._model(seen)[:, 0], truth).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._model.requires_grad_(False)
        gain = torch.sigmoid(self._model(self._input(logits, targets))).mean() - 0.5
        self._model.requires_grad_(True)
        return functional.cross_entropy(logits, targets) + self.recipe.adversarial * gain

    def state(self) -> dict[str, Tensor]:
        """The inference model and its optimiser."""
        kept = {f"model/{name}": value for name, value in self._model.state_dict().items()}
        for number, parameter in enumerate(self._model.parameters()):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                kept[f"optimizer/{number}/{name}"] = value
        return kept

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        prefix = "model/"
        self._model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        for number, parameter in enumerate(self._model.parameters()):
            start = f"optimizer/{number}/"
            own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            # Adam counts its steps on the CPU; its moments lie beside the parameter.
            self._optimizer.state[parameter] = {
                k: v.to(parameter.device) if v.shape == parameter.shape else v for k, v in own.items()
            }

    def _input(self, logits: Tensor, targets: Tensor) -> Tensor:
        import torch

        return torch.cat([torch.softmax(logits, 1), targets], 1)
