"""Keys in text: found, and blotted out before anybody reads them.

What is searched may be long and hostile: each pattern looks at a character a bounded number of times.
"""

import os
import re
from urllib.parse import unquote

# A secret may begin with digits and hold slashes: then it looks like a port and a path. Rather a path too many.
_USER_INFO = re.compile(r"//(?:[^/\s]*@|[^/\s:@]*:[^\s@]*@)")
_WORD = re.compile(r"\S+")
# The same without "//" (``key:secret@host``, ``s3:/key:secret@bucket``), in a word of its own or behind ``--option=``.
_BARE_USER_INFO = re.compile(r"(?<!\S)((?:[^\s/:@='\"(]*[='\"(])*+)[^\s/:@]*:(?!//)[^\s@]*@")
_REST_OF_USER_INFO = re.compile(r"(?<=\*\*\*@)(?:[^\s/@]*@)++")  # of a secret with an @ in it
_NAME = r"[\w.%\[\]-]"
_KEY = rf"(?={_NAME}*?(?i:signature|credential|secret|token|passw|(?:access|api)[_-]?key|(?<![a-z])sig(?![a-z])))"
_KEYED = re.compile(rf"(?<!{_NAME})({_KEY}{_NAME}+?(?:=|%3[Dd]))[^&\s]+")
_KEYED_PARAMETER = re.compile(rf"[?&;#]{_KEY}{_NAME}+=.")
# Of other URLs than those of S3 and of files, in whose names ? and # may stand.
_HEADER = re.compile(
    r"((?:x-amz-security-token|authorization|secret_?access_?key|session_?token)[\"']?\s?:\s?[\"']?"
    r"(?:(?:basic|bearer)\s)?)[^\s\"',;]+",
    re.IGNORECASE,
)
_OWN_NAME = re.compile(  # of keys themselves; other names may be labels, or parts of a path
    r"(?:(?:access|secret)[_-]?(?:access[_-]?)?key(?:[_-]?id)?|(?:session|security)[_-]?token|x-(?:amz|goog)-[a-z-]+)"
    r"(?:=|%3d).",
    re.IGNORECASE,
)
_IN_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST_KEY = 16  # of the environment; what is shorter may be a word
_PLACE_IN_PAGE = re.compile(r"/[\w/.-]*")  # of a dashboard: http://host:8265/#/jobs
_URL = re.compile(r"(?<![\w+.-])((?!s3:|file:)[a-z][a-z0-9+.-]*://[^\s?#]*)([?#]?)(\S*)", re.IGNORECASE)
_CLOSING = "'\"`)]},;:."


def redact(text: str) -> str:
    """The text with user info, signatures and queries of URLs blotted out, for messages; also what merely looks so."""
    return _KEYED.sub(r"\1***", _HEADER.sub(r"\1***", _without_keys(text)))


def _without_keys(text: str) -> str:
    """Without what is a key for certain, or nearly."""
    for name in _IN_ENVIRONMENT:
        key = os.environ.get(name, "")
        if len(key) >= _SHORTEST_KEY:
            text = text.replace(key, "***")
    text = _BARE_USER_INFO.sub(r"\1***@", _WORD.sub(_without_user_info, text))
    return _URL.sub(_without_query, _REST_OF_USER_INFO.sub("", text))


def _without_query(url: re.Match[str]) -> str:
    query = url[3].rstrip(_CLOSING)
    if url[2] == "#" and _PLACE_IN_PAGE.fullmatch(query):
        return url[0]
    return f"{url[1]}{url[2]}***{url[3][len(query) :]}" if query else url[0]


def holds_key(text: str) -> bool:
    """Whether a URL in the text has user info, a query or a signature, or a key stands there by its name."""
    return _without_keys(text) != text or is_signed(text) or _OWN_NAME.search(text) is not None


def _without_user_info(word: re.Match[str]) -> str:
    searched = _until_at(word[0])
    return _USER_INFO.sub("//***@", searched) + word[0][len(searched) :]


def _until_at(word: str) -> str:
    """The part that can hold user info: in the rest each // would be followed to the end of the word, for nothing."""
    return word[: word.rfind("@") + 1]


def is_signed(text: str) -> bool:
    """Whether a URL, or the end of one, has a parameter named like a signature, a token or a key."""
    return bool(_KEYED_PARAMETER.search(unquote(text)))
