"""What a PromQL expression names: its series and its labels. No parser; enough for the expressions of rules and dashboards."""

from __future__ import annotations

import re
from typing import Final

_STRING: Final = re.compile(r'"[^"]*"')
_COMMENT: Final = re.compile(r"#.*")
_SELECTOR: Final = re.compile(r"\{([^}]*)\}")
_WINDOW: Final = re.compile(r"\[[^\]]*\]")
_LABEL_LIST: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHED_LABEL: Final = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_NAME: Final = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])")
_KEYWORDS: Final = {"and", "or", "unless", "offset", "bool"}


def series_of(expression: str) -> set[str]:
    """Names of series, recorded ones included.

    >>> sorted(series_of('sum by (a) (rate(x_total{b="c"}[5m])) > 1 # of c\\n and on (a) level:y:z offset 1h'))
    ['level:y:z', 'x_total']
    """
    text = expression
    for pattern in (_STRING, _COMMENT, _SELECTOR, _WINDOW, _LABEL_LIST):
        text = pattern.sub(" ", text)
    return set(_NAME.findall(text)) - _KEYWORDS


def labels_of(expression: str) -> set[str]:
    """Labels that the expression matches, groups or joins by.

    >>> sorted(labels_of('sum by (a, b) (x{c=~"$d"})'))
    ['a', 'b', 'c']
    """
    text = _STRING.sub('""', expression)
    listed = {label.strip() for labels in _LABEL_LIST.findall(text) for label in labels.split(",")}
    matched = {label for selector in _SELECTOR.findall(text) for label in _MATCHED_LABEL.findall(selector)}
    return (listed | matched) - {""}
