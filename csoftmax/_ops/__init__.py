"""The public functions, a family a file: documentation, plan, and the choice of backend."""
