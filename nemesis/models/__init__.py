"""The NEMESIS network: masking, embedding, blocks, the autoencoder and its files."""

VERSION = 2  # stage version: raised whenever the same weights and input give other numbers
