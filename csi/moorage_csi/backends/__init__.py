"""Kinds of storage, each behind the protocol in ``backend``."""
