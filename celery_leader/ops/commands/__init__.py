"""The commands of ``celery leader``, one file each.

To add a command, write a file here with a function that has the command's name and the decorator
``@command``, and import and list it in ``ops/cli.py``. The function's docstring is the help text.
``base`` is shared by all commands, ``orders`` by those that move leaders.
"""
