"""`index.json`, which names every model of a zoo and pins every file of it."""

from typing import Annotated, Literal

import pydantic

from kerasae import untrusted

# Raised when an older kerasae can no longer read a new index.
FORMAT = 1
FILES = ("recipe.toml", "model.keras", "metrics.json", "card.md", "preview.png")
# A model's metrics.json.
FACTS = {
    "model": {"sha256": str, "bytes": int, "parameters": int},
    "versions": {"kerasae": str, "keras": str},
    "metrics": [
        {
            "metric": str,
            "arguments": dict,
            "value": (int, float),
            "unit": str,
            "protocol": str,
            "num_examples": int,
            "published": (int, float, type(None)),
            "source": (str, type(None)),
        }
    ],
}
ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class File(pydantic.BaseModel):
    """A file of a model, as the index pins it."""

    sha256: str = pydantic.Field(pattern=r"^[0-9a-f]{64}$")
    bytes: pydantic.NonNegativeInt


class Result(pydantic.BaseModel):
    """The first result in a model's metrics."""

    metric: str
    value: float
    unit: str


class Entry(pydantic.BaseModel):
    """A model in the index."""

    family: str
    dataset: str
    kerasae: str = pydantic.Field(pattern=r"^\d+\.\d+")
    keras: str
    figure: Result | None
    # Only these names: an index can't reach any other file.
    files: dict[Literal[FILES], File]

    @pydantic.field_validator("files")
    @classmethod
    def _complete(cls, files):
        if missing := [name for name in FILES if name not in files]:
            raise ValueError(f"{missing} missing")
        return files


class Index(pydantic.BaseModel):
    """`index.json`: every model of a source and the hash of each of its files."""

    format: Literal[FORMAT]
    models: dict[Annotated[str, pydantic.Field(pattern=ID)], Entry]


def parse_index(content, origin):
    """The `Index` in the bytes of an `index.json`; messages name its `origin`.

    Raises:
        ValueError: if it is no index, or one that only a newer kerasae reads.
    """
    try:
        raw = untrusted.json(content, {"format": int}, origin)
        found = raw["format"]
    except ValueError as error:
        raise ValueError(
            f"{origin} is not the index of a zoo, as `kerasae zoo publish` writes it: no JSON object with a format."
        ) from error
    if found > FORMAT:
        raise ValueError(
            f"{origin} has format {found}, and this kerasae reads up to {FORMAT}: `pip install --upgrade kerasae`."
        )
    try:
        return Index.model_validate(raw)
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ValueError(f"{origin} is not the index of a zoo: {problems}") from error
