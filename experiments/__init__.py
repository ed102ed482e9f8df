"""Experiments: the main job, benchmarks, and the papers' executable claims. They use the public API only."""
