"""An application package whose tasks are found by autodiscovery."""
