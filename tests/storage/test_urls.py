"""What is opened and what is refused, on text alone."""

import pickle

import pytest

from featlib.errors import ConfigError, FeatlibError, StoppedError, TransientError
from featlib.redaction import holds_key, redact
from featlib.storage import check_url, folder_of, resolve


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("a.mp4", "a.mp4"),
        ("/data/with space/ü.mp4", "/data/with space/ü.mp4"),
        ("./clip:1.mp4", "./clip:1.mp4"),
        ("2024-01-01T10:00.mp4", "2024-01-01T10:00.mp4"),
        ("file:///data/a%20b.mp4", "/data/a b.mp4"),
        ("file://localhost/data/a.mp4", "/data/a.mp4"),
        ("s3://bucket/a b/c?d#e.mp4", "s3://bucket/a b/c?d#e.mp4"),
        ("S3://bucket/key", "s3://bucket/key"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/user@host.mp4", "s3://bucket/user@host.mp4"),
    ],
)
def test_allowed(text: str, url: str) -> None:
    assert check_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "a\0b", "a\nb", "a\x7f", "http://host/a.mp4", "https://host/a.mp4", "gs://b/a", "data:text/plain,x"),
        *("simplecache::file:///etc/passwd", "zip://a.mp4::s3://b/c.zip", "local:/etc/passwd", "file:/etc/passwd"),
        *("file://host/a", "file://", "file:///a%00b", "concat:a|b", "subfile,,start,0,end,9,,:/etc/passwd"),
        *("s3://KEY:HID/HIDDEN@bucket/a", "s3://KEY:HIDDEN/bucket", "s3://b/k?X-Amz-Signature=HIDDEN"),
        *("https://KEY:HID/HIDDEN@host/a", "https://host/a?sig=HIDDEN&x=HIDDEN", "gs://KEY:HIDDEN@b/a"),
        *("s3://KEY:HIDDEN@bucket/a", "s3://HIDDEN@bucket/a", "s3:///a", "s3://", "s3:bucket/a", "s3://b*/a"),
    ],
)
def test_refused_in_one_line(text: str) -> None:
    if text.startswith("subfile"):
        assert check_url(text) == text  # no scheme before the comma: a file of that name, never handed to FFmpeg
        return
    with pytest.raises(ConfigError) as caught:
        check_url(text)
    assert "\n" not in str(caught.value)
    assert "HIDDEN" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://KEY:12/abcSECRET@b/a", "http://u:7/xSECRET@h/a", "s3://KEY:SEC/RET@b/a", "http://u:SECRET@h:80/a"]
)
def test_a_secret_that_looks_like_a_port_is_blotted_out(url: str) -> None:
    assert holds_key(url)
    assert "SEC" not in redact(f"cannot read {url}: no")
    assert redact("cannot read http://h:9000/b/a.mp4: no") == "cannot read http://h:9000/b/a.mp4: no"


@pytest.mark.parametrize("uri", ["a.mp4?X-Amz-Signature=SECRET", "./x/a.mp4?v=1&AWSAccessKeyId=SECRET"])
def test_a_signed_uri_beside_a_manifest_in_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="holds a signature") as raised:
        resolve(uri, "s3://b/lists")
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize("kind", [ConfigError, StoppedError, TransientError])
def test_no_message_of_an_error_shows_a_key(kind: type[FeatlibError]) -> None:
    error = kind("--weights cnn=s3://KEY:SECRET@b/w.pth: no such label")
    assert str(error) == "--weights cnn=s3://***@b/w.pth: no such label"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "SECRET" not in repr(error)


@pytest.mark.parametrize("before", [0, 9_000, 9_990, 9_995, 10_000, 1_000_000])
def test_a_message_without_end_is_cut_behind_its_keys(before: int) -> None:
    error = ConfigError(f"{'x' * before} s3://KEY:{'SECRET' * 10}@b/w.pth" + "y" * 20_000)
    assert len(str(error)) == 10_001
    assert "SEC" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(ConfigError("z" * 10_000)) == "z" * 10_000


def test_redact_blots_out_keys() -> None:
    shown = redact("GET s3://KEY:SECRET@bucket/a and http://h/a?X-Amz-Signature=abc&x=1&AWSAccessKeyId=AKIA failed")
    assert shown == "GET s3://***@bucket/a and http://h/a?X-Amz-Signature=***&x=***&AWSAccessKeyId=*** failed"


@pytest.mark.parametrize("part", ["//a:", "//", "/", "//a", "//:a", "a@", "//a:b?c&", "&a=", "https://"])
def test_a_long_text_is_searched_once_and_not_from_each_of_its_slashes(part: str) -> None:
    """Where it would be, these were the work of hours."""
    text = part * (4_000_000 // len(part))
    assert redact(f"{text} s3://KEY:SECRET@bucket/a").endswith(" s3://***@bucket/a")
    assert "SECRET" not in redact(f"{text}//KEY:SECRET@bucket/a")
    assert holds_key(f"{text} s3://KEY:SECRET@bucket/a")
    assert not holds_key(text)


@pytest.mark.parametrize(
    ("uri", "base", "found"),
    [
        ("a.mp4", "/data", "/data/a.mp4"),
        ("./sub//a.mp4", "/data", "/data/sub/a.mp4"),
        ("../a.mp4", "/data/m", "/data/m/../a.mp4"),
        ("/x/a.mp4", "/data", "/x/a.mp4"),
        ("s3://b/a.mp4", "/data", "s3://b/a.mp4"),
        ("a.mp4", "s3://b/m", "s3://b/m/a.mp4"),
        ("../a.mp4", "s3://b/m", "s3://b/a.mp4"),
        ("x/../../a.mp4", "s3://b/m", "s3://b/a.mp4"),
        ("a.mp4", "s3://b", "s3://b/a.mp4"),
        ("a.mp4", "", "/a.mp4"),
    ],
)
def test_relative_uris_start_from_the_base(uri: str, base: str, found: str) -> None:
    assert resolve(uri, base) == found


@pytest.mark.parametrize("uri", ["/etc/passwd", "file:///etc/passwd", "../../a.mp4", "..", "./"])
def test_a_remote_base_is_not_left(uri: str) -> None:
    if uri == "..":
        assert resolve(uri, "s3://b/m/n") == "s3://b/m"
    else:
        with pytest.raises(ConfigError):
            resolve(uri, "s3://b/m")


def test_a_remote_base_names_local_paths_when_that_is_asked_for() -> None:
    assert resolve("/data/a.mp4", "s3://b/m", local_media=True) == "/data/a.mp4"
    with pytest.raises(ConfigError, match="--local-media"):
        resolve("/data/a.mp4", "s3://b/m")


def test_folder_of(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert folder_of("m.csv") == str(tmp_path)
    assert folder_of("/m.csv") == ""
    assert folder_of("s3://b/x/m.csv") == "s3://b/x"
    assert folder_of("s3://b/m.csv") == "s3://b"
