"""Code of users that workers and nannies run beside tasks: what it derives from, and what sets it up."""
