"""What a page that is sent to strangers may not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightjar.deployments.proof.kit import telling
from nightjar.deployments.proof.kit.telling import Cleaner


@pytest.fixture
def cleaner(monkeypatch: pytest.MonkeyPatch) -> Cleaner:
    monkeypatch.setattr(telling, "_user", lambda: "somebody")
    monkeypatch.setattr(telling, "_host", lambda: "gpu-box-7")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    environ = {"HF_TOKEN": "a-token-of-theirs", "SHORT_KEY": "abc", "PATH": "/usr/bin"}
    return Cleaner(["/data/models/big"], environ)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("OSError: /data/models/big/config.json", "OSError: big/config.json"),
        ("in /home/somebody/work", "in ~/work"),
        ("on gpu-box-7", "on host"),
        ("user somebody said", "user user said"),
        ("token a-token-of-theirs!", "token ***!"),
        ("hf_abcdefghijkl", "***"),
        ("http://name:word@proxy:80", "http://***@proxy:80"),
        ("Authorization: Bearer xyz", "Authorization: ***"),
        ("File /opt/venv/lib/site.py, line 3", "File .../site.py, line 3"),
        ("from /data/llama", "from .../llama"),
        ("file:///mnt/models/llama", ".../llama"),
        ("path:/root/x", "path:.../x"),
        ("abc stays, as does 3/4 and tokens/s", "abc stays, as does 3/4 and tokens/s"),
    ],
)
def test_folders_users_hosts_and_credentials_are_taken_out_and_words_stay(cleaner: Cleaner, text: str, told: str) -> None:
    assert cleaner.clean(text) == told


def test_answers_and_steps_are_left_out_and_numbers_stay(cleaner: Cleaner) -> None:
    plain = {"answers": {"a": "text"}, "seconds": [1.5, 2], "deep": {"batches": [], "error": "at gpu-box-7"}}
    assert cleaner.cleaned(plain) == {"seconds": [1.5, 2], "deep": {"error": "at host"}}
