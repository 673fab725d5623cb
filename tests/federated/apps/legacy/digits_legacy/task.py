"""digits-legacy: model, data and training."""

from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small multi-layer perceptron."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


def load_data(partition_id: int, num_partitions: int, batch_size: int, data_dir: str):
    """Load the training and test data of one partition from local files."""
    with np.load(Path(data_dir) / "digits.npz") as file:
        x, y = file["x"][partition_id::num_partitions], file["y"][partition_id::num_partitions]
    x = torch.from_numpy(x.astype(np.float32)) / 16.0
    y = torch.from_numpy(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(42))
    half = len(x) // 2
    train, test = order[:half], order[half:]
    trainloader = DataLoader(TensorDataset(x[train], y[train]), batch_size=batch_size, shuffle=True)
    testloader = DataLoader(TensorDataset(x[test], y[test]), batch_size=batch_size)
    return trainloader, testloader


def train(net, trainloader, epochs, lr):
    """Train the model on the training set."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for x, y in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader):
    """Evaluate the model on the test set."""
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for x, y in testloader:
            outputs = net(x)
            loss += F.cross_entropy(outputs, y, reduction="sum").item()
            correct += (outputs.argmax(1) == y).sum().item()
    n = len(testloader.dataset)
    return loss / n, correct / n


def get_weights(net):
    """The model's weights as a list of arrays."""
    return [value.cpu().numpy() for value in net.state_dict().values()]


def set_weights(net, parameters):
    """Load a list of arrays into the model."""
    state = {key: torch.tensor(value) for key, value in zip(net.state_dict(), parameters, strict=True)}
    net.load_state_dict(state, strict=True)
