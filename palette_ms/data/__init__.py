"""Pictures: files and folders in, batches out."""
