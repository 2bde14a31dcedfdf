"""Training of 3D Gaussians: Kerbl et al.'s schedule and density control under the super-resolution objective."""
