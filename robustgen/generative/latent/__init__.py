"""Models of latent variables: variational autoencoders."""
