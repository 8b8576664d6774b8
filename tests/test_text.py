"""How things show themselves: help of classes, `repr` of algorithms and states, what notebooks draw of results."""

import dataclasses
import inspect
import pydoc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax.algorithms import ALGORITHMS, algorithm_class
from pgjax.core.text import brief

OTHERS = [pgjax.MLP, pgjax.CNN, pgjax.GRU, pgjax.Transformer, pgjax.MLPCritic, pgjax.CNNCritic]
SEARCHES = [pgjax.SuccessiveHalving, pgjax.PBT]


@pytest.mark.parametrize("cls", [*map(algorithm_class, ALGORITHMS), *OTHERS, *SEARCHES], ids=lambda cls: cls.__name__)
def test_help_names_every_field_with_its_sentence_default_and_interval(cls):
    text = pydoc.plain(pydoc.render_doc(cls))
    for f in dataclasses.fields(cls):
        assert f" {f.name} (" in cls.__doc__
        assert f.metadata["help"] in text
        assert f.metadata["accepts"] is None or f.metadata["accepts"] in text
    assert "Annotated" not in str(inspect.signature(cls))
    assert "jaxlib" not in str(inspect.signature(cls))


def test_help_says_which_fields_are_traced():
    assert (
        "    learning_rate (Scalar in [0, inf), traced, default 0.00025):\n        step size of Adam\n"
        in pgjax.PPO.__doc__
    )
    assert (
        "    num_epochs (int in [1, inf), default 4):\n        passes over each collected batch\n" in pgjax.PPO.__doc__
    )


def test_repr_of_an_algorithm_shows_what_differs_from_its_defaults():
    env = pgjax.make("CartPole-v1")
    assert repr(pgjax.MLP()) == "MLP()"
    assert repr(pgjax.MLP(hidden=(8,))) == "MLP(hidden=(8,))"
    text = repr(pgjax.PPO(env, num_envs=4, gamma=np.float32(0.9), network=pgjax.MLP(hidden=(8,))))
    assert text == "PPO(env=make('CartPole-v1'), network=MLP(hidden=(8,)), gamma=0.9, num_envs=4)"
    assert repr(pgjax.make("CartPole-v1", gravity=5)) == "make('CartPole-v1', gravity=5.0)"
    swept = pgjax.PPO(env, learning_rate=jnp.array([1e-3, 1e-4]))
    assert "learning_rate=[0.001, 0.0001])" in repr(swept)


def test_repr_inside_of_a_transformation_works():
    seen = []

    def look(algorithm):
        seen.append(repr(algorithm))
        return algorithm.gamma

    jax.jit(look)(pgjax.PPO(pgjax.make("CartPole-v1")))
    assert "gamma=" in seen[0]


def test_large_arrays_are_shown_by_type_and_shape():
    assert brief({"a": jnp.zeros((3, 40)), "b": (np.int32(3), [np.float32(0.1)])}) == (
        "{'a': float32[3, 40], 'b': (3, [0.1])}"
    )
    assert brief(jax.random.key(0)) == "key<fry>[]"
    state = pgjax.PPO(pgjax.make("CartPole-v1"), num_envs=4).init(jax.random.key(0))
    assert repr(state).startswith("OnPolicyState(key=key<fry>[], iteration=0, params={")
    assert len(repr(state)) < 5000
