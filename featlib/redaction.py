"""Keys in text: found, and blotted out before anybody reads them."""

import re

# A secret may begin with digits and hold slashes: then it looks like a port and a path. Rather a path too many.
_USER_INFO = re.compile(r"//(?:[^/\s]*@|[^/\s:@]*:[^\s@]*@)")
_SIGNATURE = re.compile(r"(?i)\b((?:x-amz-)?(?:signature|credential|security-token)|awsaccesskeyid)=[^&\s]+")
_SIGNED = re.compile(rf"[?&]{_SIGNATURE.pattern.removeprefix('(?i)')}", re.IGNORECASE)
_HTTP = re.compile(r"(?i)https?://\S+")
_QUERY = re.compile(r"([?&][\w.-]+=)[^&\s]+")


def redact(text: str) -> str:
    """The text with user info, signatures and queries of URLs blotted out, for messages."""
    text = _SIGNATURE.sub(r"\1=***", _USER_INFO.sub("//***@", text))
    return _HTTP.sub(lambda url: _QUERY.sub(r"\1***", url[0]), text)


def holds_key(text: str) -> bool:
    """Whether a URL in the text has user info or a signature."""
    return bool(_USER_INFO.search(text)) or is_signed(text)


def is_signed(text: str) -> bool:
    """Whether a URL, or the end of one, has a signature."""
    return bool(_SIGNED.search(text))
