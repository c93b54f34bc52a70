"""docs/how-it-works.md lists the files that one report passes."""

from __future__ import annotations

import pytest

from tests.structure import ROOT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch and vLLM, on import
def test_the_way_of_one_report_is_as_long_as_the_docs_say() -> None:
    pytest.importorskip("ray.serve")
    pytest.importorskip("vllm")
    from tests.reference.way import BEGIN, END, page

    told = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    assert told.partition(f"{BEGIN}\n")[2].partition(END)[0] == page(), "`python -m tests.reference way` prints it"
