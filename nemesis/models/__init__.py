"""The NEMESIS network: masking, embedding, blocks, the autoencoder and its files."""

VERSION = 3  # stage version: raised whenever the same weights and input give other numbers
