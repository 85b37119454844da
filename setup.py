"""Refuses an old Python in one line, where pip would name some dependency; see pyproject.toml."""

import sys

import setuptools

if sys.version_info < (3, 11):
    sys.exit(
        'error: xception_flax needs Python 3.11 or newer, and this is {}.{}: '
        'uv venv --python 3.12 makes an environment with one'.format(*sys.version_info)
    )
setuptools.setup()
