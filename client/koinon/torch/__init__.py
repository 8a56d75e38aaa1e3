"""What needs torch. Imported when a torch module is used, never by `import koinon`."""
