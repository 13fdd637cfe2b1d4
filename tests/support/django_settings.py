"""The settings of a Django project whose tasks keep their results in its database.

The database is in a variable of ``tests.fleet.proj``, as JSON.
"""

from __future__ import annotations

import json
import os

from tests.fleet.proj import DATABASE_VARIABLE

DATABASES = {"default": json.loads(os.environ[DATABASE_VARIABLE])}
INSTALLED_APPS = ["django_celery_results"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = True
SECRET_KEY = "of these tests"
