"""Training: the recipe, the models, the fast trainer, and the bank of reference models."""
