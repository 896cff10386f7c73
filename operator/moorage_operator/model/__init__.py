"""What the operator knows of the world, as frozen records.

Objects of the API server are parsed once, at the edge, into the few fields that decide anything;
sizes are int bytes from there on. Nothing here does I/O or looks at a clock.
"""
