"""What people look at: tables, live and once; logs; the state of one run in words."""
