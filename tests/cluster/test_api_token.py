"""Where the API token comes from."""

from pathlib import Path

import pytest

from nightjar.cluster.api_token import TokenError, configured_token, is_token


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
