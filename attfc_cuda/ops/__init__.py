"""The operator: its autograd, its backends and which one a call uses, how they are built, what they compile to.

Importing this package loads nothing; `backend` loads what a call needs.
"""
