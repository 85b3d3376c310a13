"""The sweep, embedding width × mask ratio, as an Optuna study: rebuilt from the rows of a grid, or searched adaptively."""

VERSION = 1  # raised whenever the same scores would be followed by other proposals or other prunings
