"""State of the process, found at import or set by the user: threads, kept memory, backends, optional packages."""
