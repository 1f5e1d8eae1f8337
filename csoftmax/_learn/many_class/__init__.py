"""The estimator for very many classes."""
