"""Cheetah: VPG-C, a second look at the pictures that the language model itself asks for."""
