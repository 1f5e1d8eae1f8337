"""The heads by name."""

from __future__ import annotations

from .heads import FullHead, LinearHead
from .sampled import SampledHead

HEADS: dict[str, type[LinearHead]] = {"sampled": SampledHead, "full": FullHead}
