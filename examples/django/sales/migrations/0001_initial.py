from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Report",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("made_at", models.DateTimeField(auto_now_add=True)),
                ("worker", models.CharField(max_length=200)),
                (
                    "term",
                    models.BigIntegerField(help_text="the leadership in which it was written"),
                ),
                (
                    "due_at",
                    models.CharField(
                        help_text="the tick it was written for", max_length=50, unique=True
                    ),
                ),
            ],
            options={"ordering": ("-made_at",)},
        ),
    )
