"""``--categories``: the names of a network's classes."""

from collections.abc import Sequence

from featlib.errors import ConfigError, MediaError
from featlib.extractors import registry
from featlib.redaction import redact
from featlib.storage import StoreOptions, read_bytes


def choose_categories(text: str | None, own: Sequence[str], num_classes: int, options: StoreOptions) -> tuple[str, ...]:
    """The names that ``text`` gives (a weights enum name, or a text file with one a line), else ``own``.

    Raises:
        ConfigError: They cannot be read, or are not as many as the network has classes.
    """
    if text is None:
        return tuple(own) if len(own) == num_classes else ()
    names = _published(text) or _file(text, options)
    if len(names) != num_classes:
        raise ConfigError(f"--categories {text}: {len(names)} names, but the weights have {num_classes} classes")
    return names


def _published(text: str) -> tuple[str, ...]:
    found = registry.find_pretrained(text)
    return () if found is None else found[1].categories


def _file(text: str, options: StoreOptions) -> tuple[str, ...]:
    if "/" not in text and "." not in text:
        raise ConfigError(f"--categories {text}: neither a weights enum like ResNet50_Weights.IMAGENET1K_V2 nor a file")
    try:
        lines = read_bytes(text, options).decode().splitlines()
    except (MediaError, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--categories {redact(text)}: cannot be read ({reason})") from None
    return tuple(line.strip() for line in lines if line.strip())
