"""The operator's page: one static file that asks for `status` and draws it, and the headers that it is served with.

It shows what `GET status` gives to whoever reaches the service, and can do nothing else. Replica ids and reasons come from
strangers; the page shows them as text, and should it ever fail to, the Content-Security-Policy still lets no script or style
run but the file's own, named by their hashes, and nothing speak to another origin. Fails at import, so in every test and not
before an operator, where the file is missing or does not hold exactly one style and one script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fastapi import Response

PAGE: Final = (Path(__file__).parent / "page" / "index.html").read_text(encoding="utf-8")


async def status_page() -> Response:
    """The operator's page: what status shows, live in a browser."""
    return Response(PAGE, media_type="text/html", headers=HEADERS)


def security_policy(page: str) -> str:
    """The Content-Security-Policy under which `page` runs its own style and script and nothing else.

    Raises ValueError where it does not hold exactly one of each.

    >>> security_policy("<style></style><script>").partition(";")
    Traceback (most recent call last):
        ...
    ValueError: the page holds 0 <script> elements, exactly one is allowed
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(page, 'script')}",
            f"style-src {_source(page, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _source(page: str, element: str) -> str:
    contents = re.findall(f"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
    if len(contents) != 1:
        raise ValueError(f"the page holds {len(contents)} <{element}> elements, exactly one is allowed")
    digest = hashlib.sha256(contents[0].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": security_policy(PAGE),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
