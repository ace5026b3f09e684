"""One file per family: functions that return a `Recipe`; `catalogue.py` lists them."""
