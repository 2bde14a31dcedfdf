"""Nearest-neighbour distances of a point set; the function is `simple_knn._C.distCUDA2`."""
