"""Where pytest-celery expects a module that needs psutil, which the image does without."""
