"""The text: networks, their forward and backward pass, losses and optimizers."""
