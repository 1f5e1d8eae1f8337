"""The state of this process: optional packages."""
