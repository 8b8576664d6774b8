"""The networks as a kind of part: by name, with the fields of their classes as options."""

from pgjax.core.parts import Dataclasses
from pgjax.networks.feedforward import CNN, MLP
from pgjax.networks.recurrent import GRU
from pgjax.networks.transformer import Transformer

NETWORKS = Dataclasses("network", {"mlp": MLP, "cnn": CNN, "gru": GRU, "transformer": Transformer})
"""A network that is not of these classes is somebody's own code."""


def register_network(name: str, cls: type) -> None:
    """Make a network class of your own, a `@pgjax.pytree`, known as `name`, as `register_algorithm` does.

    Raises:
        InputError: the name is taken, or `cls` is not such a class.
    """
    NETWORKS.register(name, cls)
