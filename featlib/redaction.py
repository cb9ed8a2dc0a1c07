"""Keys in text: found, and blotted out before anybody reads them."""

import re

# A secret may begin with digits and hold slashes: then it looks like a port and a path. Rather a path too many.
_USER_INFO = re.compile(r"//(?:[^/\s]*@|[^/\s:@]*:[^\s@]*@)")
_WORD = re.compile(r"\S+")
_SIGNATURE = re.compile(r"(?i)\b((?:x-amz-)?(?:signature|credential|security-token)|awsaccesskeyid)=[^&\s]+")
_SIGNED = re.compile(rf"[?&]{_SIGNATURE.pattern.removeprefix('(?i)')}", re.IGNORECASE)
_HTTP = re.compile(r"(?i)https?://\S+")
_QUERY = re.compile(r"([?&][\w.-]+=)[^&\s]+")


def redact(text: str) -> str:
    """The text with user info, signatures and queries of URLs blotted out, for messages."""
    text = _SIGNATURE.sub(r"\1=***", _WORD.sub(_without_user_info, text))
    return _HTTP.sub(lambda url: _QUERY.sub(r"\1***", url[0]), text)


def holds_key(text: str) -> bool:
    """Whether a URL in the text has user info or a signature."""
    return any(_USER_INFO.search(_until_at(word[0])) for word in _WORD.finditer(text)) or is_signed(text)


def _without_user_info(word: re.Match[str]) -> str:
    searched = _until_at(word[0])
    return _USER_INFO.sub("//***@", searched) + word[0][len(searched) :]


def _until_at(word: str) -> str:
    """The part that can hold user info: in the rest each // would be followed to the end of the word, for nothing."""
    return word[: word.rfind("@") + 1]


def is_signed(text: str) -> bool:
    """Whether a URL, or the end of one, has a signature."""
    return bool(_SIGNED.search(text))
