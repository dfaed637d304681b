"""What runs exported files: over Parquet files on many cores, and in a web page."""
