"""A policy as a file for where there is no jax: weights, normaliser and action mapping as one list of plain steps.

`policy.npz` is read by `numpy_policy.py`, which needs NumPy alone; `policy.onnx` by every ONNX runtime. ONNX because it
is what runtimes of other languages read, written with its own package, and NumPy's format because nothing is needed
to open it.
"""

import importlib
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pgjax.core.errors import InputError
from pgjax.core.parts import subject_name
from pgjax.environments.base import Discrete
from pgjax.learning.normalize import CLIP, EPSILON
from pgjax.networks.feedforward import CNN, MLP
from pgjax.networks.heads import torso_names
from pgjax.networks.recurrent import GRU

OPSET = 20


class Exported:
    """What is computed from an observation to an action: steps, each with the names of its arrays."""

    def __init__(self, algorithm: Any, state: Any) -> None:
        if not hasattr(algorithm, "policy_params"):
            raise InputError(f"export: {type(algorithm).__name__} has no policy in an environment")
        network = algorithm.network
        if not isinstance(network, (MLP, CNN, GRU)):
            raise InputError(f"export: a {type(network).__name__} cannot be exported: expected an MLP, a CNN or a GRU")
        self.arrays: dict[str, np.ndarray] = {}
        self.steps: list[dict[str, Any]] = []
        self.memory_size = network.memory_size if isinstance(network, GRU) else 0
        self.obs_shape = list(algorithm.env.observation_space.shape)
        params, moments = algorithm.policy_params(state), state.obs_moments
        if moments is not None and float(moments.samples) > 0.0:
            scale = 1.0 / np.sqrt(np.asarray(moments.var) + EPSILON)
            self._add("normalize", {"mean": moments.mean, "scale": scale}, clip=CLIP)
        torso = params[torso_names("shared" in params)[0]]
        if isinstance(network, GRU):
            self._dense_torso(torso["encoder"]["params"], network.activation)
            cell = torso["cell"]["params"]
            arrays = {name: cell[name]["kernel"] for name in ("ir", "iz", "in", "hr", "hz", "hn")}
            self._add("gru", arrays | {f"{name}_bias": cell[name]["bias"] for name in ("ir", "iz", "in", "hn")})
        elif isinstance(network, CNN):
            for i in range(len(network.channels)):
                self._add("conv", torso["params"][f"Conv_{i}"], stride=network.stride)
                self._add("activation", name=network.activation)
            self._dense_torso(torso["params"]["DenseTorso_0"], network.activation)
        else:
            self._dense_torso(torso["params"], network.activation)
        head = params["policy"]
        self._add("dense", {"kernel": head["kernel"], "bias": head["bias"]})
        self._action(algorithm.env, network.squash and "log_std" in head)

    def _add(self, op: str, arrays: dict[str, Any] | None = None, **options: Any) -> None:
        names = {}
        for name, array in (arrays or {}).items():
            names[name] = f"{len(self.steps)}_{name}"
            self.arrays[names[name]] = np.asarray(array, np.float32)
        self.steps.append({"op": op} | names | options)

    def _dense_torso(self, layers: Any, activation: str) -> None:
        self._add("flatten")
        for i in range(len(layers)):
            self._add("dense", layers[f"Dense_{i}"])
            self._add("activation", name=activation)

    def _action(self, env: Any, squashes: bool) -> None:
        """From the mode of the policy to what the environment receives."""
        space = env.action_space
        if isinstance(space, Discrete):
            self._add("argmax")
            return
        if squashes:
            self._add("activation", name="tanh")
        low, high = (env.received(jnp.full(space.shape, x)) for x in (-1.0, 1.0))
        if space.high == 1.0:
            self._add("bounds", {"low": low, "high": high}, shape=list(low.shape))
        else:
            self._add("reshape", shape=list(low.shape))

    def about(self, algorithm: Any) -> str:
        """What is in the file, as JSON."""
        return json.dumps(
            {
                "steps": self.steps,
                "obs_shape": self.obs_shape,
                "memory_size": self.memory_size,
                "algorithm": type(algorithm).__name__,
                "environment": subject_name(algorithm),
                "pgjax": metadata.version("pgjax"),
            }
        )


def export(algorithm: Any, state: Any, path: str | Path) -> None:
    """Write the greedy policy of `state` as `.npz` or `.onnx`, with everything between an observation and an action.

    The ONNX graph maps `obs` `[N, *obs]` to `action`, and for a network that remembers `memory` `[N, H]` (zeros where
    an episode starts) to `memory_after` as well.

    Raises:
        InputError: another ending, a network that is none of the library's own without attention, or `onnx` is not
            installed (`pip install 'pgjax[onnx]'`).
    """
    path = Path(path)
    if path.suffix not in (".npz", ".onnx"):
        raise InputError(f"export: path = {str(path)!r} is not accepted: expected an ending of .npz or .onnx")
    exported = Exported(algorithm, state)
    about = exported.about(algorithm)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"about": np.array(about)} | exported.arrays
        np.savez(path, **arrays)
    else:
        _write_onnx(exported, about, path)


def _write_onnx(exported: Exported, about: str, path: Path) -> None:
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise InputError("export to .onnx needs a package: pip install 'pgjax[onnx]'") from error
    graph = _Graph(onnx, exported)
    model = onnx.helper.make_model(
        graph.finished(), opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="pgjax", ir_version=9
    )
    onnx.helper.set_model_props(model, {"about": about})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


class _Graph:
    """The steps as nodes of ONNX."""

    def __init__(self, onnx: Any, exported: Exported) -> None:
        self.onnx, self.exported = onnx, exported
        self.nodes: list[Any] = []
        self.constants = dict(exported.arrays)
        self.value = "obs"
        for step in exported.steps:
            options = {name: option for name, option in step.items() if name != "op"}
            method: Callable[..., str] = getattr(self, f"_{step['op']}")
            self.value = method(self.value, **options)

    def finished(self) -> Any:
        """The graph with its inputs and outputs."""
        helper, number = self.onnx.helper, self.onnx.TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("obs", number, ["N", *self.exported.obs_shape])]
        last = self.exported.steps[-1]
        kind = self.onnx.TensorProto.INT64 if last["op"] == "argmax" else number
        outputs = [helper.make_tensor_value_info("action", kind, ["N", *last.get("shape", [])])]
        if self.exported.memory_size:
            shape = ["N", self.exported.memory_size]
            inputs.append(helper.make_tensor_value_info("memory", number, shape))
            outputs.append(helper.make_tensor_value_info("memory_after", number, shape))
        self.nodes.append(helper.make_node("Identity", [self.value], ["action"]))
        constants = [self.onnx.numpy_helper.from_array(x, name) for name, x in self.constants.items()]
        return helper.make_graph(self.nodes, "policy", inputs, outputs, constants)

    def _node(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def _float(self, value: float) -> str:
        return self._constant(np.float32(value))

    def _normalize(self, x: str, mean: str, scale: str, clip: float) -> str:
        scaled = self._node("Mul", self._node("Sub", x, mean), scale)
        return self._node("Clip", scaled, self._float(-clip), self._float(clip))

    def _conv(self, x: str, kernel: str, bias: str, stride: int) -> str:
        self.constants[kernel] = self.constants[kernel].transpose(3, 2, 0, 1)
        first = self._node("Transpose", x, perm=[0, 3, 1, 2])
        found = self._node("Conv", first, kernel, bias, strides=[stride, stride])
        return self._node("Transpose", found, perm=[0, 2, 3, 1])

    def _flatten(self, x: str) -> str:
        return self._node("Flatten", x, axis=1)

    def _dense(self, x: str, kernel: str, bias: str) -> str:
        return self._node("Gemm", x, kernel, bias)

    def _activation(self, x: str, name: str) -> str:
        if name == "silu":
            return self._node("Mul", x, self._node("Sigmoid", x))
        return self._node(name.capitalize(), x, **({"approximate": "tanh"} if name == "gelu" else {}))

    def _gru(self, x: str, **p: str) -> str:
        def gate(name: str) -> str:
            remembered = self._node("MatMul", "memory", p[f"h{name}"])
            return self._node(
                "Sigmoid", self._node("Add", self._dense(x, p[f"i{name}"], p[f"i{name}_bias"]), remembered)
            )

        r, z = gate("r"), gate("z")
        recalled = self._node("Mul", r, self._dense("memory", p["hn"], p["hn_bias"]))
        n = self._node("Tanh", self._node("Add", self._dense(x, p["in"], p["in_bias"]), recalled))
        kept = self._node("Mul", z, "memory")
        new = self._node("Mul", self._node("Sub", self._float(1.0), z), n)
        return self._node("Add", new, kept, out="memory_after")

    def _argmax(self, x: str) -> str:
        return self._node("ArgMax", x, axis=1, keepdims=0)

    def _bounds(self, x: str, low: str, high: str, shape: list[int]) -> str:
        shaped = self._node("Clip", self._reshape(x, shape), self._float(-1.0), self._float(1.0))
        share = self._node("Div", self._node("Add", shaped, self._float(1.0)), self._float(2.0))
        width = self._constant(self.constants[high] - self.constants[low])
        mapped = self._node("Add", low, self._node("Mul", share, width))
        return self._node("Min", self._node("Max", mapped, low), high)

    def _reshape(self, x: str, shape: list[int]) -> str:
        return self._node("Reshape", x, self._constant(np.array([-1, *shape], np.int64)))
