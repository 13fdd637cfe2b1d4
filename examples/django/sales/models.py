from django.db import models


class Report(models.Model):
    """One report, written by the leading worker."""

    made_at = models.DateTimeField(auto_now_add=True)
    worker = models.CharField(max_length=200)
    term = models.BigIntegerField(help_text="the leadership in which it was written")
    due_at = models.CharField(max_length=50, unique=True, help_text="the tick it was written for")

    class Meta:
        ordering = ("-made_at",)

    def __str__(self):
        return f"{self.due_at} by {self.worker}"
