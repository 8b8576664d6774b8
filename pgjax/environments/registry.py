"""`make`, and the environments as a kind of part: by id, with parameters and constructor arguments as options."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

from pgjax.core.errors import InputError, nearest
from pgjax.core.own import named
from pgjax.core.parts import Description, check_options, dataclass_options, from_json, to_json
from pgjax.environments import gymnax
from pgjax.environments.base import Environment
from pgjax.environments.catalog import SUITE_MODULES
from pgjax.environments.gymnax import GymnaxEnvironment, option_names, with_options
from pgjax.environments.host import Gymnasium
from pgjax.environments.own import OWN, has_our_interface
from pgjax.environments.suite import SuiteEnvironment, loaded
from pgjax.environments.suites import Brax, Craftax, Jumanji, Navix, Playground
from pgjax.environments.wrappers import WRAPPERS, Wrapper, own_options


def make(env: Any, **options: Any) -> Environment:
    """A gymnax environment by id, one of another suite by `suite:name`, one of your own by the name it was registered
    under or as an object, with our interface or, behind it, that of gymnax (six-value step).

    `options` override the environment's parameters (`length=1.0`) or its constructor's arguments (`num_bits=3`), its
    fields where it has our interface; of another suite they are what the suite's class in `environments/suites.py`
    says.

    Raises:
        InputError: an unknown id (with the nearest ones), an unknown option (with those there are) or one that follows
            from others, an environment that does not keep to the interface, one whose data cannot be had, or of a suite
            that is not installed.
    """
    if isinstance(env, str) and ":" in env:
        return make_of_suite(env, **options)
    if isinstance(env, str) and env in OWN.table:
        return OWN.make(env, **options)
    if isinstance(env, str):
        if env not in registered_envs():
            raise InputError(f"env = {env!r} is not a known environment: {_perhaps(env)}")
    elif isinstance(env, type):
        raise InputError(f"env = {env.__name__} is a class: expected an object of it, make({env.__name__}())")
    elif has_our_interface(env):
        check_options(type(env).__name__, options, dataclass_options(env))
        return OWN.with_options(env, **options) if options else env
    elif not _has_parameters(env):
        raise InputError(
            f"env = {env!r} is not accepted: expected an id, an environment with our interface or gymnax's, or for a "
            "class in Gymnasium's style gymnasium.register and make('gymnasium:ID')"
        )
    return gymnax.make(env, **options)


def register(env_id: str, factory: Callable[..., Any]) -> None:
    """Make an environment of your own known as `env_id` to `make`, to configs and to the command line.

    `factory` is a `@pgjax.pytree` class with our interface (`environments.base.Environment`), whose fields are the
    options, or what returns an environment in the style of gymnax, `factory(**options)`.

    Raises:
        InputError: the id is taken, or the factory cannot be called, or it is an environment and not its class.
    """
    if not callable(factory):
        raise InputError(
            f"register: factory = {factory!r} is not accepted: expected a class or a function that makes one"
        )
    if env_id in registered_envs():
        raise InputError(f"env_id = {env_id!r} is already registered: choose another name")
    if has_our_interface(factory):
        OWN.register(env_id, factory)  # type: ignore[arg-type]
    else:
        gymnax.register(env_id, factory)


def registered_envs() -> list[str]:
    """The ids that `make` knows, but for those of other suites."""
    return [*gymnax.registered_envs(), *OWN.table]


def _has_parameters(env: Any) -> bool:
    """As those of gymnax have."""
    with named(type(env).__name__, "default_params"):
        return hasattr(env, "default_params")


def _perhaps(env_id: str) -> str:
    """What somebody who writes an id that is not known may have meant."""
    if importlib.util.find_spec("gymnasium") and env_id in importlib.import_module("gymnasium").registry:
        return f"Gymnasium has it, stepped on the host: gymnasium:{env_id}"
    return (
        f"{nearest(env_id, registered_envs())} (one of your own: after pgjax.register, on the command line by --import "
        "of the module that calls it)"
    )


SUITES: dict[str, type[SuiteEnvironment]] = {
    "playground": Playground,
    "brax": Brax,
    "navix": Navix,
    "craftax": Craftax,
    "jumanji": Jumanji,
    "gymnasium": Gymnasium,
}


def make_of_suite(env_id: str, **options: Any) -> SuiteEnvironment:
    """`suite:name`, with options as the suite's class says.

    Raises:
        InputError: the suite or the name is not known (with the nearest ones), the suite is not installed, or an option
            is not accepted.
    """
    cls: Any = _suite(env_id)
    name = env_id.partition(":")[2]
    if name not in cls.names():
        raise InputError(f"env = {env_id!r} is not a known environment: {nearest(name, cls.names())}")
    kept = tuple(sorted((option, _hashable(value)) for option, value in options.items()))
    return cls(env_id, kept, *cls.describe(loaded(cls, env_id, kept)))


def names_of(suite: str) -> list[str]:
    """The ids of a suite.

    Raises:
        InputError: it is not known, or not installed.
    """
    return [f"{suite}:{name}" for name in _suite(f"{suite}:").names()]


def _suite(env_id: str) -> type[SuiteEnvironment]:
    suite = env_id.partition(":")[0]
    if suite not in SUITES:
        raise InputError(f"env = {env_id!r} is of no known suite: {nearest(suite, SUITES)}")
    if importlib.util.find_spec(SUITE_MODULES[suite]) is None:
        raise InputError(f"env = {env_id!r} needs {SUITE_MODULES[suite]}: pip install 'pgjax[{suite}]'")
    return SUITES[suite]


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


class Environments:
    """Every id that `pgjax.make` knows. An environment without one is somebody's own code."""

    sentence = "environment id; pgjax envs lists them"

    def make(self, name: str, **options: Any) -> Any:
        """`pgjax.make(name, **options)`, or a wrapper of `env`, which is described like a part."""
        if name in WRAPPERS:
            inner, own = options["env"], {key: from_json(value) for key, value in options.items() if key != "env"}
            return WRAPPERS[name](self.make(inner["name"], **inner["options"]), **own)
        return make(name, **{option: from_json(value) for option, value in options.items()})

    def describe(self, part: Any) -> Description | None:
        """Its id with its constructor's arguments and its parameters; None where it has no id."""
        if isinstance(part, SuiteEnvironment):
            return {"name": part.id, "options": dict(part.options)}
        if isinstance(part, Wrapper):
            inner, names = self.describe(part.env), {cls: name for name, cls in WRAPPERS.items()}
            if inner is None or type(part) not in names:
                return None
            own = {name: to_json(value) for name, value in own_options(part).items()}
            return {"name": names[type(part)], "options": {"env": inner} | own}
        if not isinstance(part, GymnaxEnvironment):
            return OWN.describe(part)
        if part.id is None:
            return None
        params = {f.name: to_json(getattr(part.params, f.name)) for f in dataclasses.fields(part.params)}
        return {"name": part.id, "options": dict(part.constructor_options) | params}

    def with_options(self, part: Any, **options: Any) -> Any:
        """A copy with other parameters or constructor arguments; of somebody's own, with other fields."""
        if isinstance(part, GymnaxEnvironment):
            return with_options(part, **options)
        if isinstance(part, SuiteEnvironment):
            return make_of_suite(part.id, **(dict(part.options) | options))
        if isinstance(part, Wrapper):
            own = {name: value for name, value in options.items() if name in own_options(part)}
            inner = {name: value for name, value in options.items() if name not in own}
            env = self.with_options(part.env, **inner) if inner else part.env
            return dataclasses.replace(part, env=env, **own)
        return dataclasses.replace(part, **options)

    def options(self, part: Any) -> dict[str, bool]:
        """Parameters and constructor arguments; of somebody's own environment, its fields."""
        if isinstance(part, SuiteEnvironment):
            return dict.fromkeys(dict(part.options), False)
        if isinstance(part, Wrapper):
            return self.options(part.env) | {k: v for k, v in dataclass_options(part).items() if k != "env"}
        return option_names(part) if isinstance(part, GymnaxEnvironment) else dataclass_options(part)

    def declaration(self, name: str) -> type | None:
        """None: which options there are is known once the environment has been made."""
        return None


ENVIRONMENTS = Environments()
