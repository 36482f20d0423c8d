"""A stub for the tools that ask for a setup.py, such as Beam's --setup_file; pyproject.toml is the truth."""

from setuptools import setup

setup()
