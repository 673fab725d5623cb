"""A model of a bank, made again from the weights in its file."""

from __future__ import annotations

import numpy as np
import torch

from memberscope.training import bank_plan
from memberscope.training.bank_files import ModelFile
from memberscope.training.batches import Normalisation
from memberscope.training.recipe import Recipe
from memberscope.training.trained_model import TrainedModel, place


def restored(
    file: ModelFile, recipe: Recipe, n_classes: int, shape: tuple[int, ...], device: str, threads: int | None
) -> TrainedModel:
    """Give the model whose weights a file keeps, ready to be asked.

    Parameters
    ----------
    file
        Of the model, with weights.
    recipe, n_classes, shape
        Of the bank: how models are trained, number of classes, shape of one record.
    device, threads
        Where it will answer.
    """
    about = file.about
    where, _, module = bank_plan.resolve(recipe, n_classes, shape, device, about["precision"])
    names = [name for name in file.places if name.startswith("weights/")]
    state = {name.removeprefix("weights/"): torch.from_numpy(np.array(file.map(name))) for name in names}
    module.load_state_dict(state)
    module.eval()
    mean, std = (np.array(about[name], np.float32) for name in ("mean", "std"))
    return TrainedModel(
        module=module,
        recipe=recipe,
        normalisation=Normalisation(mean, std),
        input_shape=shape,
        n_classes=n_classes,
        device=str(where),
        channels_last=place(module, shape, where),
        precision=about["precision"],
        seed=about["seed"],
        stopped_epoch=about["epochs"][0],
        best_epoch=about["epochs"][1],
        threads=threads,
        guard={n.removeprefix("guard/"): np.array(file.map(n)) for n in file.places if n.startswith("guard/")},
    )
