"""What may leave the machine: no prompt, no answer, no secret, no path.

The page and the JSON are sent to others. Answers and steps are dropped by name, and every sentence is cleaned of this machine's
folders, its user and host, and of what looks like a credential.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

DROPPED: Final = frozenset({"answers", "other", "greedy", "ranks", "steps", "batches", "scenarios", "lags"})
"""Parts of what tasks gave: large, or texts."""
_CREDENTIALS: Final = re.compile(r"\b(hf_|sk-|ghp_|AKIA)[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?i:bearer\s+)\S+")
_SECRET_NAMES: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST: Final = 6
"""A shorter value would be found in ordinary words."""
_PATHS: Final = re.compile(r"(?<![\w/.])(?:file://)?(?:/[\w.@+-]+)+/([\w.@+-]+)")


class Cleaner:
    """Of texts from this machine; `folders` are replaced by their last part."""

    def __init__(self, folders: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
        secrets = [value for name, value in environ.items() if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST]
        self._replaced = [(secret, "***") for secret in sorted(secrets, key=len, reverse=True)]
        self._replaced += [(folder, Path(folder).name) for folder in sorted(folders, key=len, reverse=True) if folder]
        self._replaced += [(name, word) for name, word in ((str(Path.home()), "~"), (_host(), "host")) if len(name) >= _SHORTEST]
        user = _user()
        self._user = re.compile(rf"\b{re.escape(user)}\b") if len(user) >= _SHORTEST else None

    def clean(self, text: str) -> str:
        """One sentence."""
        for value, word in self._replaced:
            text = text.replace(value, word)
        if self._user is not None:
            text = self._user.sub("user", text)
        return _PATHS.sub(r".../\1", _CREDENTIALS.sub("***", text))

    def cleaned(self, plain: Any) -> Any:
        """Plain data, with each text in it cleaned and what is dropped left out."""
        if isinstance(plain, str):
            return self.clean(plain)
        if isinstance(plain, Mapping):
            return {self.clean(str(name)): self.cleaned(value) for name, value in plain.items() if name not in DROPPED}
        if isinstance(plain, Sequence):
            return [self.cleaned(value) for value in plain]
        return plain


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _host() -> str:
    return socket.gethostname()
