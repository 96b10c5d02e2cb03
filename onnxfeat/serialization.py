"""Turn records into JSON data and back: lists for tuples, numbers and text as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def fields_to_json(record: Any) -> dict[str, Any]:
    """Return the fields of a record as JSON data."""
    data = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


def fields_from_json(record: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record from what `fields_to_json` made; what is no field of it is left out."""
    known = {field.name for field in dataclasses.fields(record)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key in known}
