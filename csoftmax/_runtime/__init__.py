"""What a process runs with: configuration, threads, memory of results."""
