"""Checks and normal forms of arguments: the only place where a call is refused.

Everything that leaves this package needs no further check, so that the backends contain none.
"""
