"""digits-app: a Flower / PyTorch app."""
