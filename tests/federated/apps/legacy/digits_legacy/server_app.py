"""digits-legacy: a Flower / PyTorch app with NumPyClient."""

from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from digits_legacy.task import Net, get_weights


def server_fn(context: Context):
    """Construct components that set the ServerApp behaviour."""
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_available_clients=2,
        initial_parameters=ndarrays_to_parameters(get_weights(Net())),
    )
    return ServerAppComponents(
        strategy=strategy, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    )


app = ServerApp(server_fn=server_fn)
