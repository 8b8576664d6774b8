"""The environments as a kind of part: by gymnax id, with parameters and constructor arguments as options."""

import dataclasses
from typing import Any

from pgjax.core.parts import Description, dataclass_options, from_json, to_json
from pgjax.environments.gymnax import GymnaxEnvironment, make, option_names, with_options


class Environments:
    """Every id that `pgjax.make` knows. An environment without one is somebody's own code."""

    sentence = "environment id; pgjax envs lists them"

    def make(self, name: str, **options: Any) -> Any:
        """`pgjax.make(name, **options)`."""
        return make(name, **{option: from_json(value) for option, value in options.items()})

    def describe(self, part: Any) -> Description | None:
        """Its id with its constructor's arguments and its parameters; None where it has no id."""
        if not isinstance(part, GymnaxEnvironment) or part.id is None:
            return None
        params = {f.name: to_json(getattr(part.params, f.name)) for f in dataclasses.fields(part.params)}
        return {"name": part.id, "options": dict(part.constructor_options) | params}

    def with_options(self, part: Any, **options: Any) -> Any:
        """A copy with other parameters or constructor arguments; of somebody's own, with other fields."""
        if isinstance(part, GymnaxEnvironment):
            return with_options(part, **options)
        return dataclasses.replace(part, **options)

    def options(self, part: Any) -> dict[str, bool]:
        """Parameters and constructor arguments; of somebody's own environment, its fields."""
        return option_names(part) if isinstance(part, GymnaxEnvironment) else dataclass_options(part)

    def declaration(self, name: str) -> type | None:
        """None: which options there are is known once the environment has been made."""
        return None


ENVIRONMENTS = Environments()
