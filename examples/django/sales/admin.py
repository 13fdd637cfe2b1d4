from django.contrib import admin

from .models import Report


@admin.register(Report)
class ReportAdmin(admin.ModelAdmin):
    list_display = ("made_at", "due_at", "worker", "term")
    list_filter = ("worker", "term")
