"""Networks of installed packages: entry points of the group ``featlib.extractors``.

A package offers networks with, in its pyproject.toml,

    [project.entry-points."featlib.extractors"]
    tiny = "my_package.networks:tiny"

where the object is a ``Network``, or a function that gives an iterable of them. On a Ray cluster the package must be
installed on every node or come by the runtime environment of the job.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points

from featlib.config import check_name
from featlib.extractors.network import Network

GROUP = "featlib.extractors"


@dataclass(frozen=True)
class Installed:
    """What the installed packages offer.

    Args:
        networks: By name.
        problems: One line by name: of an entry point that could not be used, or of a network that is claimed twice.
    """

    networks: Mapping[str, Network]
    problems: Mapping[str, str]


def installed(taken: Mapping[str, Network]) -> Installed:
    """Loads all plug-ins; one that is broken does not keep the others away.

    Args:
        taken: featlib's own networks, whose names no plug-in gets.
    """
    networks: dict[str, Network] = {}
    problems: dict[str, str] = {}
    claimed_twice: set[str] = set()
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (_package(e), e.name)):
        try:
            found = _networks(entry)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in may raise anything; it is reported
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            problems[entry.name] = f"the plug-in {entry.name!r} of {_package(entry)} cannot be used ({reason})"
            continue
        for network in found:
            other = taken.get(network.name) or networks.get(network.name)
            if other is None:
                networks[network.name] = network
            else:
                problems[network.name] = registered_twice(other, network)
                claimed_twice.add(network.name)
    unique = {name: network for name, network in networks.items() if name not in claimed_twice}
    return Installed(unique, problems)


def registered_twice(first: Network, second: Network) -> str:
    """What is wrong when two networks have one name."""
    return f"extractor {first.name!r} is registered twice, by {first.source} and {second.source}; names must be unique"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _networks(entry: EntryPoint) -> list[Network]:
    """What the entry point offers, each with its package as the source."""
    loaded = entry.load()
    if not (isinstance(loaded, Network) or callable(loaded)):
        raise TypeError(f"{entry.value} is a {type(loaded).__name__}, not a Network or a function that gives them")
    found = []
    for network in (loaded,) if isinstance(loaded, Network) else loaded():
        if not isinstance(network, Network):
            raise TypeError(f"{entry.value} gave a {type(network).__name__}, not a Network")
        if network.detects:
            raise TypeError(f"{network.name} is a detector; only networks with one feature a frame or clip are taken")
        check_name(network.name)
        hash(network)  # shapes of networks are remembered by network
        found.append(replace(network, source=_package(entry)))
    return found
