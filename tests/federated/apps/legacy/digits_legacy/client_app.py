"""digits-legacy: a Flower / PyTorch app with NumPyClient."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import Context

from digits_legacy.task import Net, get_weights, load_data, set_weights, test, train


class FlowerClient(NumPyClient):
    """Trains on local data."""

    def __init__(self, net, trainloader, testloader, local_epochs, lr):
        self.net, self.trainloader, self.testloader = net, trainloader, testloader
        self.local_epochs, self.lr = local_epochs, lr

    def fit(self, parameters, config):
        set_weights(self.net, parameters)
        train_loss = train(self.net, self.trainloader, self.local_epochs, self.lr)
        return get_weights(self.net), len(self.trainloader.dataset), {"train_loss": train_loss}

    def evaluate(self, parameters, config):
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.testloader)
        return loss, len(self.testloader.dataset), {"accuracy": accuracy}


def client_fn(context: Context):
    """Construct a client."""
    node, config = context.node_config, context.run_config
    trainloader, testloader = load_data(
        node["partition-id"], node["num-partitions"], config["batch-size"], config["data-dir"]
    )
    return FlowerClient(Net(), trainloader, testloader, config["local-epochs"], config["learning-rate"]).to_client()


app = ClientApp(client_fn)
