"""Type, encoding and depth of a body are known before it is parsed."""

from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.limits import MAX_DEPTH, _is_deep, is_identity, is_json


def nested(depth: int) -> Any:
    content: Any = 1
    for level in range(depth):
        content = [content] if level % 2 else {"a[{": content, '"]': "[[["}
    return content


def test_brackets_count_outside_of_strings_only() -> None:
    strings = orjson.dumps(['"[' * 500, "\\", "{" * 500, '\\"['] * 3)
    assert not _is_deep(bytearray(strings))
    assert not _is_deep(bytearray(b"[" + b"[]," * 1000 + b"[]]"))


@pytest.mark.parametrize(("depth", "deep"), [(MAX_DEPTH, False), (MAX_DEPTH + 1, True), (250, True)])
def test_depth_is_that_of_the_deepest_place(depth: int, deep: bool) -> None:
    siblings = [nested(2) for _ in range(200)]
    # The array is a level of its own.
    body = orjson.dumps([*siblings, nested(depth - 1), *siblings])
    assert _is_deep(bytearray(body)) is deep


def test_no_bytes_are_an_error() -> None:
    rng = Random(2)
    for _ in range(300):
        _is_deep(bytearray(rng.choices(b'[]{}"\\a\xff', k=rng.randrange(1000))))
    assert _is_deep(bytearray(b"[" * 4_000_000))


PARAMETERS = [
    "",
    ";",
    " ; ",
    ";;",
    "; charset=utf-8",
    ";charset=UTF-8",
    "; Charset=utf8",
    '; charset="utf-8"',
    '; CHARSET="UTF-8";',
    ";\tcharset=utf-8\t",
    "; charset=utf-8; odata.metadata=minimal",
    "; odata.metadata=minimal; charset=utf-8",
    "; odata.metadata=minimal",
    '; profile="a; charset=latin-1"; charset=utf-8',
    r'; profile="a\"; charset=latin-1"',
    "; version=1; q=0.5; charset=utf-8;",
]


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON", "APPLICATION/JSON"])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_json_in_utf_8_is_taken_however_it_is_written(media_type: str, parameters: str) -> None:
    assert is_json(media_type + parameters)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        ";",
        "json",
        "text/plain",
        "text/json; charset=utf-8",
        "application/jsonp",
        "application/x-ndjson",
        "application/json, text/plain",
        "application/json/x",
        "application/json charset=latin-1",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        'application/json; CHARSET="ISO-8859-1"',
        "application/json; charset=",
        "application/json; charset=utf-8; charset=latin-1",
        "application/json; odata.metadata=minimal; charset=latin-1",
        "application/json; charset*=latin-1''utf-8",
        "text/plain; a=application/json",
        "application/json" + ";" * 60_000,
    ],
)
def test_another_type_or_charset_is_refused(content_type: str) -> None:
    assert not is_json(content_type)


tokens = st.text("abcXYZ019-._", min_size=1, max_size=10).filter(lambda name: name.lower() != "charset")
quoted = st.text("abc;=, \t/", max_size=10).map(lambda text: f'"{text}"')


@given(st.lists(st.tuples(tokens, tokens | quoted), max_size=6), st.integers(0, 6))
def test_a_charset_is_found_among_any_parameters(parameters: list[tuple[str, str]], place: int) -> None:
    def header(charset: str) -> str:
        among = [*parameters[:place], ("charset", charset), *parameters[place:]]
        return "application/json" + "".join(f"; {name}={value}" for name, value in among)

    assert is_json(header("utf-8"))
    assert not is_json(header("latin-1"))


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_no_header_is_an_error(value: str) -> None:
    assert is_json("text/" + value) is False
    is_json("application/json;" + value)
    is_identity(value)


@pytest.mark.parametrize(
    "value", ["identity", "Identity", "IDENTITY ", "identity, identity", "identity,", ""]
)
def test_the_identity_encoding_is_none(value: str) -> None:
    assert is_identity(value)


@pytest.mark.parametrize("value", ["gzip", "GZIP", "br", "identity, gzip", "gzip, identity", "identity;q=1"])
def test_any_other_encoding_is_refused(value: str) -> None:
    assert not is_identity(value)
