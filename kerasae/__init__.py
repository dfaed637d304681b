"""kerasae: autoencoders for Keras 3."""
