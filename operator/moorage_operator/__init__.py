"""Moorage's operator: it decides which claim gets which volume, and has it made."""
