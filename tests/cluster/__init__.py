"""The product on a whole Kubernetes: what a person applies, and what they then see."""
