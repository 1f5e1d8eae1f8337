"""The public functions, one file for each family: documentation, plan, and the choice of backend."""
