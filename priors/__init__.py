"""Diffusion priors: makers of HR frames and guidance of 3D training, all reduced to one object.

An affine noising process (`processes`), a space (`spaces`), a network that returns clean estimates (`denoisers`), and
hooks on these (`hooks`). `sampler` makes images of one, `sds` a gradient. `interfaces` says what each is.
"""
