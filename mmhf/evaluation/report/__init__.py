"""`report.html`, galleries and contact sheets: pages that need neither network nor script."""
