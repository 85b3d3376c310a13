"""Benchmark suite for self-supervised pretraining on 3D CT."""
