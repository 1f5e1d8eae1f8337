"""Hierarchical softmax: trees, the layer, its losses."""
