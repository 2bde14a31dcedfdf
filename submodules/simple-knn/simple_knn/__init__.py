"""Nearest-neighbour distances of a point set, on the CPU; the function is `simple_knn._C.distCUDA2`."""
