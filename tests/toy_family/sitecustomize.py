"""Python imports this first where its folder leads PYTHONPATH: child processes know the toy too."""

from tests.toy_family import register

register()
