"""digits-legacy: a Flower / PyTorch app with NumPyClient."""
