"""A NeRF-synthetic-style scene with fine detail, made by the project itself: see `write.cached_scene`."""
