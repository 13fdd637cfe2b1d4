"""The settings of a Django project whose tasks keep their results in its database.

The database is in an environment variable, as JSON. ``tests.support.fleet_app.extras`` names it.
"""

from __future__ import annotations

import json
import os

from tests.support.fleet_app.extras import RESULT_DATABASE_VARIABLE

DATABASES = {"default": json.loads(os.environ[RESULT_DATABASE_VARIABLE])}
INSTALLED_APPS = ["django_celery_results"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = True
SECRET_KEY = "of these tests"
