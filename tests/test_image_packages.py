"""The images that the Dockerfile stands on keep their packages: by pip's resolver, from the package index. Nothing is installed."""

from __future__ import annotations

import pytest

from tests.image_packages import Base, addition, bases, broken_pins, pins


@pytest.mark.package
@pytest.mark.long
@pytest.mark.parametrize("base", bases(), ids=lambda base: base.requirement)
def test_ray_and_nightjar_change_no_package_of_a_base_and_what_they_add_is_pinned(base: Base) -> None:
    found = addition(base)
    assert found.changed == {}
    assert found.broken_pins == ()
    assert "structlog" in found.added
    assert found.added.items() <= pins().items()


def test_a_pin_of_vllm_that_is_broken_on_the_images_python_is_found() -> None:
    vllm = {"name": "vllm", "version": "0.32.0", "requires_dist": ["Numba==0.65.0", 'six>=1.16; python_version > "3.11"', "tqdm"]}
    numba, six = {"name": "numba", "version": "0.66.0"}, {"name": "six", "version": "1.15"}
    found = broken_pins([vllm, numba, six, {"name": "tqdm", "version": "4"}])
    assert found == ["Numba==0.65.0 (got 0.66.0)", 'six>=1.16; python_version > "3.11" (got 1.15)']
