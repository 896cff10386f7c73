"""What Moorage costs, as ratios against the raw API in the same run: ``python -m tests.bench``."""
