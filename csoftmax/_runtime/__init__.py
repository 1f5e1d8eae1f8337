"""What a process finds at import and may set: threads, kept memory, the state of the backends, optional packages."""
