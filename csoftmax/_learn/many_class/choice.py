"""The heads by name."""

from __future__ import annotations

from typing import Any

from .adaptive import AdaptiveHead
from .heads import FullHead
from .hierarchical import HierarchicalHead
from .sampled import SampledHead

HEADS: dict[str, Any] = {
    "sampled": SampledHead,
    "full": FullHead,
    "hierarchical": HierarchicalHead,
    "adaptive": AdaptiveHead,
}
