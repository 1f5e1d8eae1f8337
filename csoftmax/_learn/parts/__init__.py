"""Fits over data in parts, wherever the parts are: sums over each part, added in one tree over the parts."""
