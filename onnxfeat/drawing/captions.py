"""Say in words what the facts of a picture tell; it needs no other module, as every command loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def remarks(facts: Mapping[str, Any]) -> list[str]:
    """Return in words what of a map a picture does not show cell by cell.

    Args:
        facts: Those of an `Arrangement`, or the entry of a layer in `run.json`.

    Example:
        >>> remarks({"channels": 8, "tokens_left_out": 1, "cells_per_pixel": 3, "height": 1})
        ['first token left out', 'each pixel is the mean of 3 cells']
    """
    found = []
    if facts.get("channels_drawn"):
        found.append(f"the first {facts['channels_drawn']:,} of {facts['channels']:,} channels")
    if "slices" in facts and len(facts["slices"]) < facts["depth"]:
        found.append(f"{len(facts['slices'])} of {facts['depth']} slices")
    left_out = facts.get("tokens_left_out", 0)
    if left_out:
        found.append("first token left out" if left_out == 1 else f"first {left_out} tokens left out")
    cells = facts.get("cells_per_pixel", 1)
    if cells > 1:
        block = cells if facts.get("height") == 1 else f"{cells} x {cells}"
        found.append(f"each pixel is the mean of {block} cells")
    return found


def description(facts: Mapping[str, Any]) -> str:
    """Return in words what a picture shows: shape, arrangement and remarks.

    Example:
        >>> description({"channels": 3, "height": 4, "width": 5, "arrangement": "belt"})
        '3 channels of 4 x 5, belt'
    """
    return ", ".join([shape_words(facts), facts["arrangement"], *remarks(facts)])


def shape_words(facts: Mapping[str, Any]) -> str:
    """Return the number of channels and their sides.

    Example:
        >>> shape_words({"channels": 8, "height": 148, "width": 148})
        '8 channels of 148 x 148'
    """
    if facts.get("numbers"):
        return f"{facts['width']:,} channels of one number each"
    sides = " x ".join(str(facts[side]) for side in ("depth", "height", "width") if side in facts)
    return f"{facts['channels']:,} channel{'' if facts['channels'] == 1 else 's'} of {sides}"
