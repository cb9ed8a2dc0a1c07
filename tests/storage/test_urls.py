"""What is opened and what is refused, on text alone."""

import pickle
from pathlib import Path

import pytest

from featlib.errors import ConfigError, FeatlibError, StoppedError, TransientError
from featlib.redaction import holds_key, redact
from featlib.storage import Store, StoreOptions, check_url, folder_of, resolve, s3
from featlib.storage.urls import check_endpoint


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
        ("s3://bucket/a?design=2#x=1.mp4", "s3://bucket/a?design=2#x=1.mp4"),
        ("a?token=3.mp4", "a?token=3.mp4"),
        ("/data/Show::Episode 1.mp4", "/data/Show::Episode 1.mp4"),
        ("./x::y", "./x::y"),
        ("s3://bucket/a::b.mp4", "s3://bucket/a::b.mp4"),
        ("file:///data/a%3A%3Ab.mp4", "/data/a::b.mp4"),
    ],
)
def test_allowed(text: str, url: str) -> None:
    assert check_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "a\0b", "a\nb", "a\x7f", "http://host/a.mp4", "https://host/a.mp4", "gs://b/a", "data:text/plain,x"),
        *("s3://b/a.zip::zip://x", "s3://b/x::file:/etc/passwd", "file:///a::simplecache:/b", "x::y", "s3::b/a"),
        *("simplecache::file:///etc/passwd", "zip://a.mp4::s3://b/c.zip", "local:/etc/passwd", "file:/etc/passwd"),
        *("file://host/a", "file://", "file:///a%00b", "concat:a|b", "subfile,,start,0,end,9,,:/etc/passwd"),
        *("s3://KEY:HID/HIDDEN@bucket/a", "s3://KEY:HIDDEN/bucket", "s3://b/k?X-Amz-Signature=HIDDEN"),
        *("s3://b/k?sig=HIDDEN", "s3://b/k?AWSSecretAccessKey=HIDDEN", "s3://b/k?X-Goog-Signature=HIDDEN"),
        *("s3://b/k;X-Amz-Signature=HIDDEN", "s3://b/k%3FX-Amz-Signature%3DHIDDEN", "s3://b/k#token=HIDDEN"),
        *("KEY:HIDDEN@host:9000", "https://host/a?HIDDEN", "s3:/KEY:HIDDEN@b/k", "s3://KEY:HIDDEN\n@b/k"),
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
    assert shown == "GET s3://***@bucket/a and http://h/a?*** failed"
    assert redact(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("me:SECRET@h:9000", "***@h:9000"),
        ("(got 'me:SEC/RET@h:9000')", "(got '***@h:9000')"),
        ("--endpoint-url=me:SECRET@h:9000", "--endpoint-url=***@h:9000"),
        ("http:me:SECRET@h/x", "***@h/x"),
        ("s3:/KEY:SECRET@b/k", "***@b/k"),
        (r"s3:\/\/KEY:SECRET@b\/k", r"***@b\/k"),
        ("https://u:p/a@SEC@RET@h/x", "https://***@h/x"),
        ("'https://h/a?SECRET': no", "'https://h/a?***': no"),
        ("https://h/a?X%2DAmz%2DSignature=SECRET", "https://h/a?***"),
        ("https://h/a?tok[0]=SECRET", "https://h/a?***"),
        ("https://h/a#token=SECRET", "https://h/a#***"),
        ("gs://b/a?SECRET", "gs://b/a?***"),
        ("s3://b/k?sig=SECRET", "s3://b/k?sig=***"),
        ("s3://b/k?AWSSecretAccessKey=SECRET&v=2", "s3://b/k?AWSSecretAccessKey=***&v=2"),
        ("s3://b/k?X-Goog-Signature=SECRET", "s3://b/k?X-Goog-Signature=***"),
        ("s3://b/k?a=1&amp;X-Amz-Signature=SECRET", "s3://b/k?a=1&amp;X-Amz-Signature=***"),
        ("s3://b/k;X-Amz-Signature=SECRET", "s3://b/k;X-Amz-Signature=***"),
        ("s3://b/k%3FX-Amz-Signature%3DSECRET", "s3://b/k%3FX-Amz-Signature%3D***"),
        ("aws_secret_access_key=SECRET", "aws_secret_access_key=***"),
    ],
)
def test_every_shape_of_a_key_is_blotted_out_and_known_for_one(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown
    assert holds_key(text)


@pytest.mark.parametrize(
    "text",
    [
        *("s3://b/c?d#e.mp4", "s3://b/user@host.mp4", "s3://b/dt=10:00/user@host.mp4", "s3://b/a?design=2#x=1.mp4"),
        *("/data/a?b.mp4", "a?b#c=d.mp4", "file:///data/a?b.mp4", "clips/**/*?.mp4", "./10:00/user@host.mp4"),
        *("--model=small=resnet18", "crop:ssd+resnet18", "my_networks:tiny", "http://127.0.0.1:8265", "fps:2"),
        *("cannot read http://h:9000/b/a.mp4: no", "row 3: a@b.mp4 is no token", "features/model=signature_net/a"),
        *("s3://b/tokens/secret.mp4", "s3://b/token/a=1.mp4", "http://127.0.0.1:8265/#/jobs"),
    ],
)
def test_what_is_no_key_is_shown_and_taken(text: str) -> None:
    assert redact(text) == text
    assert not holds_key(text)


@pytest.mark.parametrize(
    "text", ["cls_token=vit_b_16", "signature=resnet18", "s3://b/token_id=ab12/", "--weights=secret_net=random:0"]
)
def test_labels_and_folders_named_like_a_key_are_taken(text: str) -> None:
    """What merely looks so is blotted out of messages, and no reason to refuse anything."""
    assert not holds_key(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sent x-amz-security-token:SECRET x-amz-date:1", "sent x-amz-security-token:*** x-amz-date:1"),
        ("{'Authorization': 'Basic SECRET'}", "{'Authorization': 'Basic ***'}"),
        ("(got 'aws_secret_access_key: SECRET')", "(got 'aws_secret_access_key: ***')"),
    ],
)
def test_headers_that_hold_a_key_are_blotted_out(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_the_keys_of_this_process_are_blotted_out_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc/DEF+0123456789")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")  # a word of the language
    assert redact("400 b'abc/DEF+0123456789' no token") == "400 b'***' no token"
    assert holds_key("name-abc/DEF+0123456789.csv")


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
        ("./sub//a.mp4", "s3://b/m", "s3://b/m/sub/a.mp4"),
        ("a..b/..c.mp4", "s3://b/m", "s3://b/m/a..b/..c.mp4"),
        ("a.mp4", "s3://b", "s3://b/a.mp4"),
        ("a.mp4", "", "/a.mp4"),
    ],
)
def test_relative_uris_start_from_the_base(uri: str, base: str, found: str) -> None:
    assert resolve(uri, base) == found


@pytest.mark.parametrize(
    "uri",
    ["/etc/passwd", "file:///etc/passwd", "../a.mp4", "x/../a.mp4", "x/..", "..", "./", "s3://b/../c/a.mp4",
     "s3://b/m/..", "S3://b/./a.mp4"],
)  # fmt: skip
@pytest.mark.parametrize("base", ["s3://b/m/n", "s3://b"])
def test_a_remote_base_is_not_left(uri: str, base: str) -> None:
    with pytest.raises(ConfigError):
        resolve(uri, base)


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


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000", "https://s3.example.org/", "http://[::1]:9000", "https://h/some/path"]
)
def test_endpoints(url: str) -> None:
    assert check_endpoint(url) == url
    assert s3.endpoint_url(StoreOptions(url)) == url


WRONG_ENDPOINTS = [
    *("me:HIDDEN@h:9000", "http://me:HIDDEN@h:9000", "http://me:HIDDEN@ bad host:9000", "ftp://h", "h:9000"),
    *("http://", "http://a b", "http://h?HIDDEN", "http://h/#HIDDEN", "http://h:HIDDEN", "http://h:9000/\nHIDDEN"),
]


@pytest.mark.parametrize("url", WRONG_ENDPOINTS)
def test_a_wrong_endpoint_is_refused_without_a_word_of_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^endpoint_url: must ") as caught:
        StoreOptions(url)
    assert "HIDDEN" not in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("url", WRONG_ENDPOINTS)
def test_a_wrong_endpoint_in_the_environment_is_refused_likewise(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, url)
    for call in (lambda: Store("s3://b").get("a"), lambda: Store("s3://b").arrow()):
        with pytest.raises(ConfigError, match=f"^{name}: must ") as caught:
            call()
        assert "HIDDEN" not in str(caught.value)


def test_a_wrong_endpoint_of_a_profile_is_refused_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = me:HIDDEN@h:9000\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    s3._client_of.cache_clear()
    with pytest.raises(ConfigError, match="endpoint_url of the AWS profile") as caught:
        Store("s3://b", StoreOptions(anon=True)).get("a")
    assert "HIDDEN" not in str(caught.value)
    s3._client_of.cache_clear()
