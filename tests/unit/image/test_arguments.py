"""Arguments that can never work, and paths that lead out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.image.pictures import (
    Process,
    noise,
    refusal,
)


@pytest.mark.parametrize(
    "keywords",
    [
        {"size": size}
        for size in (0, -1, True, "800x600", None, [0, 0], [800], [1, 2, 3], [-1, 5], [1.5, 2], [True, 2], [99999, 1])
    ]
    + [{"quality": quality} for quality in (0, 101, "80", 80.0, True)]
    + [{"format": format} for format in ("BMP", "", "EPS", 3)]
    + [{"background": background} for background in ("no colour", "#12", None, 7)]
    + [
        *(
            {"gravity": gravity}
            for gravity in (
                "middle",
                "North",
                None,
                3,
                [],
                [0.5],
                [0.5, 1.1],
                [-0.1, 0],
                [True, 0],
                ["0", 0],
                [0, 0, 0],
            )
        ),
        *({"keep_metadata": keep} for keep in ("some", None, True)),
        *({"color": color} for color in ("cmyk", None)),
        *({"animated": animated} for animated in ("last", None, True)),
        *({"overwrite": overwrite} for overwrite in ("yes", None, 1)),
        {"gravity": [float("nan"), 0]},
        {"mode": "crop"},
        {"mode": None},
        {"upscale": "yes"},
        {"output": "a.png"},
        {"output": "./a.png"},
        {"output": 3},
        {"output": "b.png", "format": "jpeg"},
        {"image_path": None},
    ],
)
def test_bad_argument(process: Process, tmp_path: Path, keywords: dict[str, Any]) -> None:
    noise((8, 8)).save(tmp_path / "a.png")
    assert refusal(process, **{"image_path": "a.png", **keywords}) == "bad_argument"


def test_paths(process: Process, tmp_path: Path) -> None:
    noise((8, 8)).save(tmp_path / "a.png")
    assert refusal(process, "none.png") == "not_found"
    assert refusal(process, "../a.png") == "forbidden_path"
    assert refusal(process, "/etc/passwd") == "forbidden_path"
    assert refusal(process, "a.png", output="../b.png") == "forbidden_path"
