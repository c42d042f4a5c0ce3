"""Triton kernels: the sweep over class centres and its merge, their tile sizes, and a report of what they compile to.

Importing this package does not import Triton; its modules do.
"""
