"""Where the API token comes from."""

from pathlib import Path

import pytest

from nightjar.cluster.api.access import TokenError, configured_token, is_token, reader_tokens


def test_no_variable_means_no_token() -> None:
    assert configured_token({}) is None
    assert configured_token({"NIGHTJAR_API_TOKEN": " ", "NIGHTJAR_API_TOKEN_FILE": ""}) is None


def test_the_token_is_masked_wherever_it_is_printed() -> None:
    token = configured_token({"NIGHTJAR_API_TOKEN": "s3cret"})
    assert token is not None
    assert "s3cret" not in f"{token} {token!r}"
    assert is_token("s3cret", token)
    assert not is_token("s3cre", token)


def test_a_token_file_is_read_anew_so_that_a_secret_may_rotate(tmp_path: Path) -> None:
    file = tmp_path / "token"
    environ = {"NIGHTJAR_API_TOKEN_FILE": str(file)}
    for secret in ("first", "second"):
        file.write_text(f"{secret}\n")
        token = configured_token(environ)
        assert token is not None
        assert is_token(secret, token)


def test_a_missing_or_empty_token_file_is_an_error_naming_the_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(TokenError, match=r"NIGHTJAR_API_TOKEN_FILE=.*token: .*cannot be read"):
        configured_token({"NIGHTJAR_API_TOKEN_FILE": str(file)})
    file.write_text("\n")
    with pytest.raises(TokenError, match="is empty"):
        configured_token({"NIGHTJAR_API_TOKEN_FILE": str(file)})


@pytest.mark.parametrize("token", ["schl\xfcssel", "two\nlines"])
def test_a_token_that_no_header_can_hold_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(TokenError, match="printable ASCII") as refused:
        configured_token({"NIGHTJAR_API_TOKEN": token})
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    ("environ", "tokens"),
    [
        ({}, None),
        ({"NIGHTJAR_API_TOKEN": "w"}, None),
        ({"NIGHTJAR_API_READ_ACCESS": "open", "NIGHTJAR_API_READ_TOKEN": "r"}, None),
        ({"NIGHTJAR_API_READ_TOKEN": "r"}, ["r"]),
        ({"NIGHTJAR_API_READ_TOKEN": "r", "NIGHTJAR_API_TOKEN": "w"}, ["r", "w"]),
        ({"NIGHTJAR_API_READ_ACCESS": "token", "NIGHTJAR_API_TOKEN": "w"}, ["w"]),
        ({"NIGHTJAR_API_READ_ACCESS": "token"}, []),
    ],
)
def test_readers_need_a_token_where_one_is_configured_for_them_or_the_access_says_so(
    environ: dict[str, str], tokens: list[str] | None
) -> None:
    found = reader_tokens(environ)
    assert (None if found is None else [token.get_secret_value() for token in found]) == tokens


@pytest.mark.parametrize("environ", [{"NIGHTJAR_API_READ_ACCESS": "closed"}, {"NIGHTJAR_API_READ_TOKEN_FILE": "/no/such/file"}])
def test_an_access_or_a_read_token_that_cannot_be_used_is_an_error_and_not_open(environ: dict[str, str]) -> None:
    with pytest.raises(TokenError, match="NIGHTJAR_API_READ_"):
        reader_tokens(environ)
