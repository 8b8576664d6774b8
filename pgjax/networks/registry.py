"""The networks by name."""

from typing import Any

from pgjax.networks.feedforward import CNN, MLP
from pgjax.networks.network import Network
from pgjax.networks.recurrent import GRU

NETWORKS = {"mlp": MLP, "cnn": CNN, "gru": GRU}
"""The networks by the name that the command line, presets and stored configs use."""


def make_network(name: str, **fields: Any) -> Network:
    """A network from what JSON or TOML says of it, where tuples are lists."""
    return NETWORKS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
