"""The networks as a kind of part: by name, with the fields of their classes as options."""

from pgjax.core.parts import Dataclasses
from pgjax.networks.feedforward import CNN, MLP
from pgjax.networks.recurrent import GRU
from pgjax.networks.transformer import Transformer

NETWORKS = Dataclasses("network", {"mlp": MLP, "cnn": CNN, "gru": GRU, "transformer": Transformer})
"""A network that is not of these classes is somebody's own code."""
