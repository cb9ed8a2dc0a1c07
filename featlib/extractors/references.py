"""``--model module:object``: a user's own network, imported from the current folder or an installed package."""

import importlib
import os
import sys
import traceback
from dataclasses import replace
from types import ModuleType

from featlib.errors import ConfigError
from featlib.extractors.network import Network

_ON_A_CLUSTER = "on a Ray cluster every node needs it, installed or sent by the job's runtime_env (--working-dir)"
_WANTED = "a featlib.Network (see featlib.own_network) or a function without arguments that gives one"


def network(reference: str) -> Network:
    """The network that ``module:object`` stands for, under that name.

    The current folder counts as importable, as for ``python -m``. Workers of a Ray that this process started or joined
    look there too; other nodes of a cluster must have the module.

    Args:
        reference: The object is a ``Network``, or a callable without arguments that gives one; dots go into objects.

    Raises:
        ConfigError: The module cannot be imported, has no such object, or the object gives no network.
    """
    module_name, _, path = reference.partition(":")
    if not module_name or not path:
        raise ConfigError(f"--model {reference}: write module:object, like my_networks:tiny")
    found: object = _module(reference, module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"--model {reference}: {module_name} has no {path!r}{_offers(module_name)}") from None
    given = _checked(reference, found if isinstance(found, Network) else _called(reference, found))
    return replace(given, name=reference)


def _module(reference: str, name: str) -> ModuleType:
    folder = os.getcwd()
    if not {"", folder} & set(sys.path):
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the file may be younger than what Python remembers of the folder
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"--model {reference}: there is no module {name!r} in {folder} or installed; {_ON_A_CLUSTER}"
            ) from None
        raise ConfigError(f"--model {reference}: {name} cannot be imported ({_reason(error)})") from error


def _offers(module_name: str) -> str:
    there = sorted(name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, Network))
    return f"; its networks are {', '.join(there)}" if there else f"; it must be {_WANTED}"


def _called(reference: str, function: object) -> object:
    if not callable(function):
        return function
    try:
        return function()
    except Exception as error:  # a user's function may raise anything
        raise ConfigError(f"--model {reference}: calling it raised {_reason(error)}; it must be {_WANTED}") from error


def _checked(reference: str, found: object) -> Network:
    if not isinstance(found, Network):
        raise ConfigError(f"--model {reference}: is or gives a {type(found).__name__}; it must be {_WANTED}")
    if found.detects:
        raise ConfigError(f"--model {reference}: is a detector; those of torchvision are known by their own names")
    try:
        hash(found)
    except TypeError as error:
        raise ConfigError(f"--model {reference}: {error}; write tuples instead of lists") from None
    return found


def _reason(error: BaseException) -> str:
    """Type, message and the innermost line of the user's code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if "importlib" not in f.filename]
    where = f" at {os.path.basename(own[-1].filename)}, line {own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"
