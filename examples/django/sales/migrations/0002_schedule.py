"""The periodic tasks, which can be changed in the admin from here on."""

from django.db import migrations

ENTRIES = {"greet": ("sales.tasks.greet", 2), "report": ("sales.tasks.write_report", 3)}


def add(apps, _):
    interval = apps.get_model("django_celery_beat", "IntervalSchedule")
    entry = apps.get_model("django_celery_beat", "PeriodicTask")
    for name, (task, seconds) in ENTRIES.items():
        every, _ = interval.objects.get_or_create(every=seconds, period="seconds")
        entry.objects.get_or_create(name=name, defaults={"task": task, "interval": every})


def remove(apps, _):
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(name__in=ENTRIES).delete()


class Migration(migrations.Migration):
    dependencies = (
        ("sales", "0001_initial"),
        ("django_celery_beat", "0018_improve_crontab_helptext"),
    )
    operations = (migrations.RunPython(add, remove),)
