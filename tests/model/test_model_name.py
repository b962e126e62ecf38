from __future__ import annotations

from pathlib import Path

import pytest

from thinkstream_model.model_name import DEMO, ModelName


@pytest.mark.parametrize(
    ("text", "path", "random_seed", "from_anywhere"),
    [
        ("models/small", "models/small", None, "{}/models/small"),
        ("/models/small", "/models/small", None, "/models/small"),
        ("random:shape.json", "shape.json", 0, "random:{}/shape.json"),
        ("random:shape.json,seed=0", "shape.json", 0, "random:{}/shape.json"),
        ("random:/a,b/shape.json,seed=7", "/a,b/shape.json", 7, "random:/a,b/shape.json,seed=7"),
        ("random:shape.json,seed=x", "shape.json,seed=x", 0, "random:{}/shape.json,seed=x"),
        ("random:", "random:", None, "{}/random:"),
    ],
)
def test_names(
    text: str,
    path: str,
    random_seed: int | None,
    from_anywhere: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = ModelName.parse(text)
    assert name == (Path(path), random_seed)
    assert name.from_anywhere() == from_anywhere.format(tmp_path)
    again = ModelName.parse(name.from_anywhere())
    assert again == (tmp_path / path, random_seed)


def test_the_demo_is_where_the_package_is() -> None:
    name = ModelName.parse(DEMO)
    assert (name.path / "config.json").is_file() and name.random_seed is None
    assert name.from_anywhere() == DEMO
